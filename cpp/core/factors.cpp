#include "factors.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "driver.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

// A matrix' lines are summed in so many bands at most, of so many lines at least: each takes the
// room of a line in double.
constexpr std::ptrdiff_t most_bands = 16, least_lines = 64;

std::ptrdiff_t over(std::ptrdiff_t a, std::ptrdiff_t b) { return (a + b - 1) / b; }

struct bands {
  std::ptrdiff_t lines, count;  // of one band; of a matrix

  explicit bands(const outer& of)
      : lines(std::max(least_lines, over(of.height, most_bands))), count(over(of.height, lines)) {}
};

// Matrices of one band whose sums have room on the stack: there may be many of them.
constexpr std::ptrdiff_t small_width = 512;
bool is_small(const outer& of) { return of.height <= least_lines && of.width <= small_width; }

bool computes_double(const span& a) { return a.x.kind == kind::float64; }
std::ptrdiff_t bytes(const span& a) {
  return a.row.kind == kind::none ? 0 : a.size * (a.x.width + a.g.width);
}

// The first band of a span that begins at or behind an element.
std::ptrdiff_t band_from(const outer& of, std::ptrdiff_t element) {
  const bands in(of);
  const std::ptrdiff_t line = over(element, of.width);
  return line / of.height * in.count + over(line % of.height, in.lines);
}

template <class T> T rounded(double value, bool flushes) {
  const T found = static_cast<T>(value);
  return flushes && std::fabs(found) < std::numeric_limits<T>::min() ? T(0) : found;
}

// What n elements of a factor become, of which one has the mean mean(i).
template <class T, class Mean> void bring(const stream& old, std::vector<char>& to,
                                          std::ptrdiff_t first, std::ptrdiff_t n, const scalars& c,
                                          const Mean& mean) {
  const T* const before = static_cast<const T*>(old.data) + first;
  T* const after = reinterpret_cast<T*>(to.data()) + first;
  for (std::ptrdiff_t i = 0; i < n; ++i)
    after[i] = rounded<T>((1.0 - c.share) * static_cast<double>(before[i]) + c.share * mean(i),
                          c.flush != 0);
}

// What the factors of one matrix become by the sums of its lines and of its bands, and the row
// divided by its mean.
template <class T> void forward(const span& a, const scalars& c, factors& f, std::ptrdiff_t matrix,
                                const double* lines, const double* columns) {
  const std::ptrdiff_t height = f.product.height, width = f.product.width;
  const std::ptrdiff_t count = bands(f.product).count;
  bring<T>(f.across ? a.column : a.row, f.across ? f.column : f.row, matrix * height, height, c,
           [&](std::ptrdiff_t i) { return lines[i] / static_cast<double>(width); });
  bring<T>(f.across ? a.row : a.column, f.across ? f.row : f.column, matrix * width, width, c,
           [&](std::ptrdiff_t i) {
             double sum = 0;
             for (std::ptrdiff_t b = 0; b < count; ++b) sum += columns[b * width + i];
             return sum / static_cast<double>(height);
           });
  const std::ptrdiff_t rows = f.across ? width : height;
  const T* const row = reinterpret_cast<const T*>(f.row.data()) + matrix * rows;
  T* const scaled = reinterpret_cast<T*>(f.scaled.data()) + matrix * rows;
  double mean = 0;
  for (std::ptrdiff_t i = 0; i < rows; ++i) mean += static_cast<double>(row[i]);
  mean /= static_cast<double>(rows);
  if (mean < c.floor) mean = c.floor;
  for (std::ptrdiff_t i = 0; i < rows; ++i)
    scaled[i] = static_cast<T>(static_cast<double>(row[i]) / mean);
}

void forward(const span& a, const scalars& c, factors& f, std::ptrdiff_t matrix,
             const double* lines, const double* columns) {
  if (computes_double(a)) return forward<double>(a, c, f, matrix, lines, columns);
  forward<float>(a, c, f, matrix, lines, columns);
}

// Sums a band, of a small matrix all that there is.
void sum_band(const table& kernels, const span& a, const scalars& c, factors& f,
              std::ptrdiff_t band) {
  const outer& of = f.product;
  const bands in(of);
  const std::ptrdiff_t from = band % in.count * in.lines;
  const std::ptrdiff_t line = band / in.count * of.height + from;
  const std::ptrdiff_t end = line + std::min(in.lines, of.height - from);
  if (is_small(of)) {
    double lines[least_lines], columns[small_width];
    kernels.add_lines(a, line * of.width, end * of.width, c, lines, columns);
    return forward(a, c, f, band, lines, columns);
  }
  kernels.add_lines(a, line * of.width, end * of.width, c, f.line_sums.data() + line,
                    f.band_sums.data() + band * of.width);
}

void bring_all(const span& a, const scalars& c, factors& f) {
  const outer& of = f.product;
  const std::ptrdiff_t sums = bands(of).count * of.width;
  for (std::ptrdiff_t matrix = 0; matrix < f.matrices; ++matrix)
    forward(a, c, f, matrix, f.line_sums.data() + matrix * of.height,
            f.band_sums.data() + matrix * sums);
}

}  // namespace

void factors::fit(const span& a, std::ptrdiff_t number, std::ptrdiff_t height, std::ptrdiff_t width,
                  bool lines_are_columns) {
  const auto sized = [](auto& room, std::ptrdiff_t size) {
    room.resize(static_cast<std::size_t>(size));
  };
  matrices = number;
  across = lines_are_columns;
  const std::ptrdiff_t rows = matrices * (across ? width : height);
  sized(row, rows * a.row.width);
  sized(scaled, rows * a.row.width);
  sized(column, matrices * (across ? height : width) * a.column.width);
  product = {scaled.data(), column.data(), height, width};
  if (across) std::swap(product.lines, product.columns);
  const bool keeps = !is_small(product);
  sized(line_sums, keeps ? matrices * height : 0);
  sized(band_sums, keeps ? matrices * bands(product).count * width : 0);
}

void factor(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
            std::vector<factors>& all) noexcept {
  std::ptrdiff_t total = 0;
  for (const span& a : spans) total += bytes(a);
  const division into = divide(total);
  parallel_for(into, [&](int piece) {
    const std::ptrdiff_t from = cut(total, piece, into.pieces);
    const std::ptrdiff_t to = cut(total, piece + 1, into.pieces);
    std::ptrdiff_t before = 0;
    for (std::size_t k = 0; k < spans.size(); before += bytes(spans[k++])) {
      const span& a = spans[k];
      if (bytes(a) == 0) continue;
      const auto band_at = [&](std::ptrdiff_t target) {
        const std::ptrdiff_t element = over(target - before, bytes(a) / a.size);
        return band_from(all[k].product, std::clamp<std::ptrdiff_t>(element, 0, a.size));
      };
      for (std::ptrdiff_t band = band_at(from); band < band_at(to); ++band)
        sum_band(kernels, a, sets[a.set], all[k], band);
    }
  });
  // What is left are a few elements: one piece, for the floating-point environment of a region.
  parallel_for(divide(0), [&](int) {
    for (std::size_t k = 0; k < spans.size(); ++k)
      if (bytes(spans[k]) != 0 && !is_small(all[k].product))
        bring_all(spans[k], sets[spans[k].set], all[k]);
  });
}

}  // namespace schuss
