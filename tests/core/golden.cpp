// The bits that a release leaves, in golden.txt: of every rule in every storage, of the stages
// around one, and of what all rules share (shared.cpp). A line there is a case, whose steps are
// taken by the kernels alone and by the driver, with several threads, over the arrays of
// arrays.hpp. tests/exact/test_golden.py makes the same ones, and takes the same steps in NumPy.
#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "check.hpp"
#include "dispatch.hpp"
#include "driver.hpp"
#include "golden.hpp"
#include "kernel.hpp"
#include "numbers.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

constexpr double infinite = std::numeric_limits<double>::infinity();

// ---- Steps

constexpr int steps = 3;

// name=1 or name=1,2,3: of each step one, and the last one for those behind it.
assignments assignments_of(const std::string& text) {
  assignments all;
  std::istringstream words(text);
  for (std::string pair; words >> pair;) {
    const std::size_t equals = pair.find('=');
    if (equals == std::string::npos) throw std::invalid_argument("no number: " + pair);
    std::istringstream numbers(pair.substr(equals + 1));
    all.emplace_back(pair.substr(0, equals), std::vector<double>());
    for (std::string one; std::getline(numbers, one, ',');)
      all.back().second.push_back(std::stod(one));
  }
  return all;
}

double at_step(const std::vector<double>& values, int step) {
  return values[std::min(static_cast<std::size_t>(step), values.size() - 1)];
}

void surround(surroundings& around, const assignments& with) {
  for (const auto& [name, values] : with) {
    if (name == "bounds")
      around.bounds = true;
    else if (name == "master")
      around.master = true;
    else if (name == "report")
      around.report = true;
#define SCHUSS_SET(member, neutral) else if (name == #member) around.stages.member = values.front();
    SCHUSS_STAGES(SCHUSS_SET)
    else throw std::invalid_argument("unknown stage: " + name);
  }
}

}  // namespace

surroundings recipe::around(const assignments& more) const {
  surroundings all{};
#define SCHUSS_NEUTRAL(member, neutral) all.stages.member = neutral;
  SCHUSS_STAGES(SCHUSS_NEUTRAL)
  surround(all, stages);
  surround(all, more);
  return all;
}

std::vector<scalars> recipe::sets(const surroundings& with, int step) const {
  schuss::scalars c = with.stages;
  c.rule = number;
  for (std::size_t i = 0; i < scalars.size(); ++i)
    c.rule_scalars[i] = at_step(scalars[i].second, step);
  return {c, c};
}

namespace {

// What all steps leave, where one is taken by step(arrays, sets).
template <class Step> word after_steps(const recipe& by, const storage& kinds,
                                       const surroundings& around, const Step& step) {
  arrays all(*by.of, kinds, around);
  for (int t = 0; t < steps; ++t) {
    all.next_gradients(t);
    step(all, by.sets(around, t));
  }
  digest found;
  all.add_to(found);
  if (around.report) all.add_sums_to(found, most_reports);
  CHECK(all.fences_stand());
  return found.sum();
}

// The same by the kernel alone, and by the driver with so many threads.
word stepped(const std::string& name, const recipe& by, const storage& kinds,
             const surroundings& around, const std::vector<int>& threads) {
  const kernel own = kinds.x == kind::float64 ? by.of->float64 : by.of->float32;
  const word alone =
      after_steps(by, kinds, around, [&](arrays& all, const std::vector<scalars>& sets) {
        for (const span& a : all.spans) own(&a, &a + 1, 0, a.size, sets[a.set]);
      });
  for (const int team : threads) {
    set_threads_here(team);
    const word driven = after_steps(
        by, kinds, around,
        [&](arrays& all, const std::vector<scalars>& sets) { run(kernels(), all.spans, sets); });
    CHECK_SAYING(driven == alone, name + ": other bits by " + std::to_string(team) + " threads");
  }
  set_threads_here(0);
  return alone;
}

// What the first of the steps measures before it.
word measured(const std::string& name, const recipe& by, const storage& kinds) {
  const surroundings around = by.around();
  const std::vector<scalars> sets = by.sets(around, 0);
  const unsigned wanted = xx | gg | uu | agree | (by.of->measures ? own : 0u);
  return with_teams(name, [&](digest& found) {
    arrays all(*by.of, kinds, around);
    all.next_gradients(0);
    measure(kernels(), all.spans, sets, wanted, all.sums);
    for (const span& a : all.spans) fold(a, all.sums.data() + most_sums * a.chunk, most_sums);
    for (const span& a : all.spans)
      for (int s = 0; a.size > 0 && s < most_sums; ++s)
        found.add(all.sums.data()[a.chunk * most_sums + s]);
  });
}

// ---- The file

// What a line shows of a hash, behind the name of its case.
std::string shown(const std::string& name, word hash) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016" PRIx64, hash);
  return "  " + name + std::string(name.size() < 12 ? 12 - name.size() : 1, ' ') + digits;
}

struct named_storage {
  const char* name;
  std::vector<storage> all;
};

// Every loop that a rule has for narrow kinds, and what goes through buffers.
std::vector<named_storage> storages() {
  const auto of_16_bits = [](kind h) {
    const kind f = kind::float32;
    return std::vector<storage>{{h, h, h}, {f, h, h}, {f, f, h}, {f, h, f}, {h, f, f}};
  };
  return {{"float32", {{kind::float32, kind::float32, kind::float32}}},
          {"float64", {{kind::float64, kind::float64, kind::float64}}},
          {"bfloat16", of_16_bits(kind::bfloat16)},
          {"float16", of_16_bits(kind::float16)},
          {"blockfloat8",
           {{kind::float32, kind::float32, kind::signed8},
            {kind::float16, kind::bfloat16, kind::signed8}}},
          {"remainder",
           {{kind::bfloat16, kind::float32, kind::float32, true},
            {kind::bfloat16, kind::bfloat16, kind::signed8, true}}}};
}

// All of golden.txt but its hashes.
struct contents {
  std::vector<std::string> lines;
  std::map<std::string, recipe> rules;
  std::vector<std::string> stages;  // each as it stands in its line
};

bool indented(const std::string& line) { return line.compare(0, 2, "  ") == 0; }

std::string first_word(const std::string& line) { return line.substr(0, line.find(' ')); }

recipe recipe_of(const std::string& line) {
  const table& all = kernels();
  const std::string name = first_word(line);
  const std::size_t bar = std::min(line.find('|'), line.size());
  const assignments own = assignments_of(line.substr(name.size(), bar - name.size()));
  const rule* const found =
      std::find_if(all.rules, all.rules + all.size, [&](const rule& r) { return name == r.name; });
  if (found == all.rules + all.size) throw std::invalid_argument("unknown rule: " + name);
  if (own.size() != static_cast<std::size_t>(found->scalars))
    throw std::invalid_argument("wrong number of scalars: " + line);
  const std::string rest = bar < line.size() ? line.substr(bar + 1) : "";
  return {static_cast<int>(found - all.rules), found, own, assignments_of(rest)};
}

contents contents_of(const std::string& file) {
  std::ifstream from(file);
  if (!from) throw std::invalid_argument("can't be read: " + file);
  contents all;
  std::string section;
  for (std::string line; std::getline(from, line);) {
    all.lines.push_back(line);
    if (line.empty() || line[0] == '#') continue;
    if (!indented(line)) section = first_word(line);
    if (indented(line) && section == "stages")
      all.stages.push_back(line.substr(2, line.find_last_not_of(' ', line.rfind(' ')) - 1));
    else if (!indented(line) && section != "stages" && section != "shared")
      all.rules.emplace(section, recipe_of(line));
  }
  return all;
}

class writer {
 public:
  explicit writer(const std::string& file) : of_(contents_of(file)) {
    const table& all = kernels();
    for (const rule* r = all.rules; r != all.rules + all.size; ++r)
      CHECK_SAYING(of_.rules.count(r->name) == 1, std::string("golden.txt lacks ") + r->name);
  }

  std::vector<std::string> lines() {
    for (const std::string& line : of_.lines) {
      if (indented(line)) continue;
      lines_.push_back(line);
      if (line.empty() || line[0] == '#') continue;
      const std::string section = first_word(line);
      if (section == "stages")
        add_stages(of_.rules.at("adam"));
      else if (section == "shared")
        for (const auto& [name, hash] : shared_cases(of_.rules))
          lines_.push_back(shown(name, hash));
      else
        add_rule(section, of_.rules.at(section));
    }
    return lines_;
  }

 private:
  void add_rule(const std::string& name, const recipe& by) {
    for (const auto& [storage_name, kinds] : storages()) {
      digest all;
      for (const storage& one : kinds)
        all.add(stepped(name + ", " + storage_name, by, one, by.around(), teams));
      lines_.push_back(shown(storage_name, all.sum()));
    }
    digest all, sums;
    for (const kind of : {kind::float32, kind::float64}) {
      for (const std::string& stages : of_.stages)
        if (by.of->states > 0 || stages.find("drift") == std::string::npos)
          all.add(stepped(name + ", " + stages, by, {of, of, of}, by.around(assignments_of(stages)),
                          {2}));
      sums.add(measured(name, by, {of, of, of}));
    }
    lines_.push_back(shown("stages", all.sum()));
    lines_.push_back(shown("sums", sums.sum()));
  }

  void add_stages(const recipe& by) {
    for (const std::string& stages : of_.stages) {
      digest all;
      for (const kind of : {kind::float32, kind::float64, kind::bfloat16, kind::float16})
        all.add(
            stepped("adam, " + stages, by, {of, of, of}, by.around(assignments_of(stages)), teams));
      lines_.push_back(shown(stages, all.sum()));
    }
  }

  contents of_;
  std::vector<std::string> lines_;
};

}  // namespace

std::string golden_text(const std::string& file) {
  std::string text;
  for (const std::string& line : writer(file).lines()) text += line + "\n";
  return text;
}

void test_golden(const std::string& file) {
  const std::ptrdiff_t grain = set_grain(1);
  widest_region();
  const std::vector<std::string> wanted = contents_of(file).lines, got = writer(file).lines();
  CHECK(widest_region() == 5);
  std::string section;
  for (std::size_t i = 0; i < std::min(wanted.size(), got.size()); ++i) {
    if (!indented(got[i])) section = first_word(got[i]);
    CHECK_SAYING(got[i] == wanted[i],
                 section + ":\n  recorded " + wanted[i] + "\n  found    " + got[i]);
  }
  CHECK_SAYING(got.size() == wanted.size(), "golden.txt lacks cases, or has some that aren't any");
  set_grain(grain);
}

}  // namespace schuss
