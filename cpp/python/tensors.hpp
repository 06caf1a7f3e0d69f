// Gradients in the tensors of another library, which a step reads where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.hpp"

namespace schuss {

// ---- DLPack's binary interface, version 1, as far as a tensor is looked at

struct dl_tensor {
  void* data;
  std::int32_t device, device_number;
  std::int32_t dimensions;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;  // strides in elements
  std::uint64_t byte_offset;
};

// What a library lends: a tensor's fields, borrowed, without an object for them. 0 is success.
using dl_view = int (*)(void* tensor, dl_tensor* found);

// ---- The tensors

// The parameters of one optimizer, which are tensors. Of each gradient there is an array, made
// once, that is aimed at the tensor's memory for as long as a step takes: to make a new one takes
// as long as to step a thousand elements. Between steps it lies where nobody writes.
class tensors {
 public:
  // `exchange` is a capsule with DLPack's functions for objects of a type, or None. For what can't
  // be aimed at `other(i, gradient)` is called, and returns what stands for that gradient.
  tensors(const py::object& exchange, py::type type, py::object other);
  tensors() = default;

  // A parameter, with the array of its memory and the one to aim at its gradient.
  void add(py::object tensor, py::array x, py::array g);
  // The parameter's memory is another one.
  void replace(std::size_t i, py::array x) { entries_.at(i).x = std::move(x); }

  // The step of a plan that has the same parameters.
  bool step(plan& own, const py::object& lr, const py::object& loss);

  template <class See> int visit(const See& see) const {
    int stopped = 0;
    const auto seen = [&](const auto&... objects) {
      ((stopped = stopped != 0 ? stopped : see(objects.ptr())), ...);
    };
    seen(type_, gradients_, other_);
    for (const entry& e : entries_) seen(e.tensor, e.x, e.g);
    return stopped;
  }

 private:
  struct entry {
    py::object tensor;
    py::array x, g;
    char* rest;  // where g lies between steps
  };
  // While it lives, gradients are aimed at.
  class aimed;

  void aim(std::size_t i, py::handle gradient);
  void put(std::size_t i, const py::object& gradient);
  bool aim_directly(const entry& e, py::handle gradient) const;

  dl_view view_ = nullptr;
  py::object type_, other_;
  py::object gradients_ = py::list();  // what the step is given
  std::vector<entry> entries_;
};

}  // namespace schuss
