// Many arrays, one parallel region: what a step's spans cost is the cost of their bytes, however
// many arrays they are.
#pragma once

#include <cstddef>
#include <vector>

#include "kernel.hpp"

namespace schuss {

// Updates all spans, each, or each of its rows, with its set of scalars. Cannot throw, allocates
// nothing, and gives the same bits for every number of threads. The floating-point environment is
// the default one inside and the caller's again afterwards.
void run(const table& kernels, const std::vector<span>& spans,
         const std::vector<scalars>& sets) noexcept;

// The norm of gradients, sqrt(squares)*2^exponent, in double and in an order of its own: blocks of
// `chunk` elements fold pairwise by index, and so do the rows of a span, then spans are added in
// their order. The exponent is 0 unless squares of float64 leave the range of double, and a second
// sweep scales them by it. `sums` is room for the chunks of all spans.
struct scaled_norm {
  double squares;
  int exponent;
  bool finite;
};
scaled_norm norm(const table& kernels, const std::vector<span>& spans,
                 std::vector<double>& sums) noexcept;

// The parts of it, for spans that are shares of larger arrays, whose other sums are elsewhere: the
// sum of the squares of each chunk, with all gradients multiplied by 2^-exponent, and whether they
// are finite; and by which exponent to sum them again, from the total: 0 where that is good.
bool sum_squares(int exponent, const table& kernels, const std::vector<span>& spans,
                 std::vector<double>& sums) noexcept;
int better_exponent(const std::vector<span>& spans, double squares, bool finite) noexcept;

// The norms of each span by itself, or of each of its rows, in their order. `found` has as many as
// are wanted.
void norms(const table& kernels, const std::vector<span>& spans, bool of_rows,
           std::vector<double>& sums, std::vector<scaled_norm>& found) noexcept;

// Of norms by themselves that of all, their squares added in order.
scaled_norm added(const std::vector<scaled_norm>&) noexcept;

// Where spans lie side by side in all of their streams, so that several can be stepped as one, puts
// them into `joined`, with all others; false where there are none.
bool join(const std::vector<span>& spans, std::vector<span>& joined);

// How many chunks a span has.
std::ptrdiff_t chunks(const span&) noexcept;

// Sums of each chunk of a span, `several` side by side, folded into the first ones.
void fold(const span&, double* sums, int several) noexcept;

// The first span whose gradient is not finite behind the stages scale and clip; their number where
// there is none.
std::size_t first_overflow(const table& kernels, const std::vector<span>& spans,
                           const std::vector<scalars>& sets) noexcept;

// What a step would do: the sums of each chunk (kernel.hpp, measure_kernel), at most_sums times its
// number, which are to be folded. `sums` is room for most_sums of each chunk.
void measure(const table& kernels, const std::vector<span>& spans, const std::vector<scalars>& sets,
             unsigned wanted, std::vector<double>& sums) noexcept;

// Writes the gradient of each span, which is a sum, to its x.
void add(const table& kernels, const std::vector<span>& spans) noexcept;

// Where piece `piece` of a step's bytes begins, and the one before it ends.
std::ptrdiff_t cut(std::ptrdiff_t total, int piece, int pieces) noexcept;

// The last element of a span, at or before byte `target` from its start, at which it may be cut.
std::ptrdiff_t edge(std::ptrdiff_t size, std::ptrdiff_t row_size, std::ptrdiff_t bytes_per_element,
                    std::ptrdiff_t target) noexcept;

}  // namespace schuss
