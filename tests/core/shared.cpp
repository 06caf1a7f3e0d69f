// The part of golden.txt that no rule owns: norms, gradients in pieces and of rows, second moments
// as factors, and conversions.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "dispatch.hpp"
#include "driver.hpp"
#include "factors.hpp"
#include "golden.hpp"
#include "kernel.hpp"
#include "layout.hpp"
#include "numbers.hpp"

namespace schuss {
namespace {

constexpr std::size_t longest = 4;  // which of the arrays

kind computing(kind k) { return k == kind::float64 ? kind::float64 : kind::float32; }

// Numbers the chunks of spans.
void number_chunks(std::vector<span>& spans, std::vector<double>& sums) {
  std::ptrdiff_t before = 0;
  for (span& a : spans) {
    a.chunk = before;
    before += chunks(a);
  }
  sums.resize(static_cast<std::size_t>(before));
}

void add(digest& all, const scaled_norm& one) {
  all.add(one.squares);
  all.add(static_cast<word>(one.exponent + 1000));
  all.add(word{one.finite});
}

// ---- Norms: of all arrays, of those without corners, of each and of its rows

void add_norms(const recipe& sgd, kind of, digest& found) {
  arrays all(*sgd.of, {computing(of), of, of}, sgd.around());
  all.next_gradients(0);
  std::vector<span>& spans = all.spans;
  std::vector<scalars> sets = sgd.sets(sgd.around(), 0);
  for (scalars& c : sets) c.scale = 3e38;
  const auto norm_now = [&] {
    number_chunks(spans, all.sums);
    return norm(kernels(), spans, all.sums);
  };
  add(found, norm_now());
  found.add(word{first_overflow(kernels(), spans, sets)});
  spans.erase(spans.begin() + of_corners);
  add(found, norm_now());
  found.add(word{first_overflow(kernels(), spans, sets)});

  spans.back().row_size = spans.back().size = chunk + 576;
  for (span& a : spans) a.row_size = std::max<std::ptrdiff_t>(1, a.size / 73);
  for (const bool by_rows : {false, true}) {
    number_chunks(spans, all.sums);
    std::vector<scaled_norm> each(by_rows ? 15 + 1 + 73 : spans.size());
    norms(kernels(), spans, by_rows, all.sums, each);
    for (const scaled_norm& one : each) add(found, one);
    add(found, added(each));
  }
  add(found, norm_now());
}

// Of numbers that are multiplied by 2^600 and 2^-600.
void add_far_norms(const recipe& sgd, digest& found) {
  for (const std::int64_t octaves : {600, -600}) {
    arrays all(*sgd.of, {kind::float64, kind::float64, kind::float64}, sgd.around());
    all.next_gradients(0);
    all.spans.erase(all.spans.begin() + of_corners);
    for (const span& a : all.spans)
      for (std::ptrdiff_t i = 0; i < a.size; ++i) {
        word bits;
        char* const at = static_cast<char*>(a.g.data) + 8 * i;
        std::memcpy(&bits, at, sizeof bits);
        bits += static_cast<word>(octaves) << 52;
        std::memcpy(at, &bits, sizeof bits);
      }
    add(found, norm(kernels(), all.spans, all.sums));
  }
}

// ---- Gradients in pieces and of rows

constexpr double weights[] = {0.5, 0.3, -1.7};

// Adam steps of a sum of three gradients, which are zeros then, and the sum alone.
void add_pieces(const recipe& adam, kind of, digest& found) {
  surroundings around = adam.around();
  around.stages.zero_grad = 1;
  const kind own = computing(of);
  const bool wide = own == kind::float64;
  arrays all(*adam.of, {of, own, own}, around);
  std::deque<arrays> gradients;
  for (const kind k : {own, wide ? own : kind::bfloat16, wide ? own : kind::float16})
    gradients.emplace_back(*adam.of, storage{own, k, own, false}, around);
  std::vector<piece> pieces;
  for (std::size_t i = 0; i < all.spans.size(); ++i)
    for (std::size_t k = 0; k < 3; ++k) {
      const stream& g = gradients[k].spans[i].g;
      pieces.push_back({g.data, g.kind, weights[k]});
    }
  const std::vector<span> before = all.spans;
  std::vector<sum> sums;
  for (std::size_t i = 0; i < all.spans.size(); ++i)
    sums.push_back({pieces.data() + 3 * i, 3, 0, nullptr, all.spans[i].size});
  for (std::size_t i = 0; i < all.spans.size(); ++i) all.spans[i].g = {&sums[i], kind::sum, 0};
  for (int t = 0; t < 3; ++t) gradients[static_cast<std::size_t>(t)].next_gradients(t);
  const std::vector<span> of_sums = all.spans;
  run(kernels(), of_sums, adam.sets(around, 0));
  all.spans = before;
  all.add_to(found);
  for (const arrays& g : gradients) g.add_to(found);
  for (int t = 0; t < 3; ++t) gradients[static_cast<std::size_t>(t)].next_gradients(t);
  schuss::add(kernels(), of_sums);
  all.add_to(found);
  CHECK(all.fences_stand());
}

// Adam steps some rows of the longest array, of which some have several pieces, and each a factor.
void add_rows(const recipe& adam, const storage& kinds, digest& found) {
  const std::vector<std::ptrdiff_t> numbers = {0, 3, 4, 9, 70, 72}, begins = {0, 1, 3, 4, 7, 8, 9};
  const std::vector<double> by_row = {1, 0.5, 0.25, 3, 1, 0.7};
  const std::vector<std::size_t> of_sets = {0, 1, 1, 0, 0, 1};
  const surroundings around = adam.around();
  const std::vector<scalars> sets = {adam.sets(around, 0)[0], adam.sets(around, 2)[0]};
  for (const bool folded : {false, true}) {
    arrays all(*adam.of, kinds, around);
    all.next_gradients(0);
    span a = all.spans[longest];
    std::vector<piece> pieces;
    for (std::ptrdiff_t k = 0; k < begins.back(); ++k)
      pieces.push_back({static_cast<char*>(a.g.data) + k * coded * a.g.width, kinds.g,
                        folded ? weights[k % 3] : 1});
    const rows some = {numbers.data(), folded ? begins.data() : nullptr, pieces.data(),
                       folded ? by_row.data() : nullptr, folded ? of_sets.data() : nullptr};
    a.rows = &some;
    a.row_size = coded;
    a.size = static_cast<std::ptrdiff_t>(numbers.size()) * coded;
    a.g = {nullptr, kind::sum, a.g.width};
    run(kernels(), {a}, sets);
    all.add_to(found);
    CHECK(all.fences_stand());
  }
}

// ---- Second moments as factors

struct matrices {
  std::ptrdiff_t count, height, width;
  bool across;
};

// Adafactor steps matrices of the longest array: small ones, of several bands, longer than a block.
void add_factors(const recipe& adafactor, kind of, digest& found) {
  constexpr matrices shapes[] = {
      {4, 33, 35, false}, {1, 130, 35, false}, {1, 130, 35, true}, {2, 3, 700, false}};
  for (const matrices& m : shapes) {
    surroundings around = adafactor.around();
    around.stages.share = 0.3;
    around.stages.floor = 1e-30;
    const std::vector<scalars> sets = adafactor.sets(around, 0);
    arrays all(*adafactor.of, {of, of, of}, around);
    all.next_gradients(0);
    span a = all.spans[longest];
    a.size = a.row_size = m.count * m.height * m.width;
    a.row = all.add_stream(longest, average_of, of, never_negative);
    a.column = all.add_stream(longest, master_of, of, never_negative);
    std::vector<factors> f(1);
    f[0].fit(a, m.count, m.height, m.width, m.across);
    a.state[0] = {&f[0].product, kind::outer, 0};
    factor(kernels(), {a}, sets, f);
    for (const std::vector<char>* part : {&f[0].row, &f[0].column, &f[0].scaled}) {
      const stream as = {const_cast<char*>(part->data()), of, width_of(of)};
      add_elements(as, static_cast<std::ptrdiff_t>(part->size()) / as.width, found);
    }
    run(kernels(), {a}, sets);
    all.add_to(found);
  }
}

// ---- Conversions, and the quotient

std::vector<std::uint32_t> any_bits(word seed) {
  std::vector<std::uint32_t> all(5003);
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i] = static_cast<std::uint32_t>(mix(mix(seed) + i));
  return all;
}

stream stream_of(std::vector<std::uint32_t>& bits) { return {bits.data(), kind::float32, 4}; }

void add_conversions(kind half, digest& found) {
  std::vector<std::uint32_t> wide = any_bits(0);
  const auto n = static_cast<std::ptrdiff_t>(wide.size());
  std::vector<std::uint16_t> narrowed(wide.size());
  const stream to = {narrowed.data(), half, 2};
  kernels().convert(stream_of(wide), to, n);
  add_elements(to, n, found);
  for (std::size_t i = 0; i < narrowed.size(); ++i)
    narrowed[i] = static_cast<std::uint16_t>(mix(mix(1) + i));
  kernels().convert(to, stream_of(wide), n);
  add_elements(stream_of(wide), n, found);
}

void add_quotients(digest& found) {
  std::vector<std::uint32_t> a = any_bits(0), b = any_bits(1), quotients = a;
  const auto numbers = [](std::vector<std::uint32_t>& bits) {
    std::vector<float> all(bits.size());
    std::memcpy(all.data(), bits.data(), 4 * bits.size());
    return all;
  };
  std::vector<float> found_ones(a.size());
  kernels().divide(numbers(a).data(), numbers(b).data(), static_cast<std::ptrdiff_t>(a.size()),
                   found_ones.data());
  std::memcpy(quotients.data(), found_ones.data(), 4 * a.size());
  add_elements(stream_of(quotients), static_cast<std::ptrdiff_t>(a.size()), found);
}

}  // namespace

std::vector<std::pair<std::string, word>> shared_cases(const std::map<std::string, recipe>& rules) {
  const recipe &sgd = rules.at("sgd"), &adam = rules.at("adam"), &ada = rules.at("adafactor");
  constexpr kind f4 = kind::float32, f8 = kind::float64, bf16 = kind::bfloat16, f2 = kind::float16;
  const std::pair<std::string, std::function<void(digest&)>> cases[] = {
      {"norm float32", [&](digest& d) { add_norms(sgd, f4, d); }},
      {"norm float64", [&](digest& d) { add_norms(sgd, f8, d), add_far_norms(sgd, d); }},
      {"norm bfloat16", [&](digest& d) { add_norms(sgd, bf16, d); }},
      {"norm float16", [&](digest& d) { add_norms(sgd, f2, d); }},
      {"pieces float32", [&](digest& d) { add_pieces(adam, f4, d); }},
      {"pieces float64", [&](digest& d) { add_pieces(adam, f8, d); }},
      {"pieces bfloat16", [&](digest& d) { add_pieces(adam, bf16, d); }},
      {"rows float32", [&](digest& d) { add_rows(adam, {f4, f4, f4}, d); }},
      {"rows float64", [&](digest& d) { add_rows(adam, {f8, f8, f8}, d); }},
      {"rows bfloat16", [&](digest& d) { add_rows(adam, {bf16, bf16, bf16}, d); }},
      {"rows blockfloat8", [&](digest& d) { add_rows(adam, {f4, f4, kind::signed8}, d); }},
      {"factors float32", [&](digest& d) { add_factors(ada, f4, d); }},
      {"factors float64", [&](digest& d) { add_factors(ada, f8, d); }},
      {"convert bfloat16", [&](digest& d) { add_conversions(bf16, d); }},
      {"convert float16", [&](digest& d) { add_conversions(f2, d); }},
      {"quotient", [&](digest& d) { add_quotients(d); }},
  };
  std::vector<std::pair<std::string, word>> all;
  for (const auto& [name, work] : cases) all.emplace_back(name, with_teams(name, work));
  return all;
}

}  // namespace schuss
