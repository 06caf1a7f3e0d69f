// Gradients that are no single array: some rows of one, or pieces that are to be added up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "registry.hpp"

namespace schuss {

// What the gradient of one member is made of in a step; the kernels read it where it lies here.
class source {
 public:
  // Reads what a gradient is: an array, a row_gradient, or of both a tuple with a weight for each,
  // in which None adds nothing. Where `by_row` all of a dense one is rows, and where `ascending`
  // they are in that order, in which they are summed; else, since the memory has it easier so, as
  // they were given. False where something in it doesn't fit, and `explain` says what.
  bool read(const member& m, const py::object& g, const std::vector<double>& weights, bool by_row,
            bool ascending, int flags);

  // Raises what is wrong with it. Python may run; where it returns, nothing is.
  static void explain(member& m, const py::object& g, bool has_pieces, int flags);

  // Whether the arrays that were read are still as they were.
  bool still() const;

  // Multiplies each row, of `row_size` elements, by a factor from here on.
  void scale_rows(std::vector<double> factors, std::ptrdiff_t row_size);

  // Gives each row a set of scalars of its own.
  void spread(std::vector<std::size_t> of, span& a);

  // Puts it into the span of its member, which has all else.
  void fill(span& a) const;

  // The memory that is read.
  template <class Look> void each_array(const Look& look) const {
    for (const sighting& a : seen_) look(a.array());
  }

  bool is_read() const { return !seen_.empty(); }
  void forget() { seen_.clear(); }
  std::ptrdiff_t count() const { return static_cast<std::ptrdiff_t>(numbers.size()); }

  std::vector<std::ptrdiff_t> numbers;  // of the rows
  std::vector<std::size_t> sets;        // of each row its set of scalars, where they have their own

 private:
  struct part {
    const py::object& g;
    double weight;
  };

  bool read_rows(const member& m, const std::vector<part>& parts, bool ascending);
  bool are_distinct(std::ptrdiff_t rows);
  bool see(const member& m, py::handle a, const shape_t& shape, int flags);
  void gather(std::ptrdiff_t rows);

  bool by_row_ = false;
  std::ptrdiff_t row_size_ = 0;
  std::vector<std::ptrdiff_t> begins_;
  std::vector<piece> pieces_;
  std::vector<std::uint64_t> marks_;  // a bit for each row of the parameter
  std::vector<double> factors_;
  std::vector<shape_t> shapes_;
  std::vector<sighting> seen_;
  mutable rows rows_{};
  mutable sum sum_{};
};

}  // namespace schuss
