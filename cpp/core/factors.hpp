// Second moments of matrices as two factors, the means of rows and of columns: what a step makes of
// them, beside what is stored, which stays until nothing can fail any more.
#pragma once

#include <cstddef>
#include <vector>

#include "kernel.hpp"

namespace schuss {

// The factors of one span. What the rule sees as its only state is their product.
struct factors {
  // For a span of so many matrices behind one another, whose lines are their columns or not.
  void fit(const span& a, std::ptrdiff_t matrices, std::ptrdiff_t height, std::ptrdiff_t width,
           bool across);

  outer product;
  std::ptrdiff_t matrices;
  bool across;
  std::vector<double> line_sums, band_sums;  // of the squares, but of small matrices
  std::vector<char> row, column, scaled;     // the new ones, and the row as the product has it
};

// Finds the new factors of each span that has some. The same bits for every number of threads: a
// band of lines is summed by one of them, bands and all else in their order.
void factor(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
            std::vector<factors>& all) noexcept;

}  // namespace schuss
