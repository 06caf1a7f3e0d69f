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
  // be aimed at `other(i, gradient)` is called, and returns what stands for that gradient; behind a
  // step `written(list)` hears of the tensors whose memory is another.
  tensors(const py::object& exchange, py::type type, py::object other, py::object written);
  tensors() = default;

  // A group of the user's, a dict: the hyperparameters that the optimizer of arrays follows, lr
  // first, and its parameters, of which the next `add`s tell. `any_rate`: a step may be told any
  // other lr, for all that it steps.
  void begin_group(py::dict group, py::tuple names, bool any_rate);
  // What is stepped for a parameter of the last group, mostly itself, with the array of its memory
  // and the one to aim at its gradient.
  void add(py::object parameter, py::object stepped, py::array x, py::array g);
  // The memory is another one.
  void replace(std::size_t i, py::array x) { entries_.at(i).x = std::move(x); }

  // The optimizer of arrays has the values of all groups now.
  void follow();
  // Whether these are the groups, with the parameters that they had.
  bool holds(const py::list& groups) const;
  // What a step has to be told: None where all groups are as they were followed, a number where
  // only an lr is another that it may be told; False where more has changed.
  py::object rate(const py::list& groups) const;

  // The step of a plan that has the same parameters.
  bool step(plan& own, const py::object& lr, const py::object& loss);

  template <class See> int visit(const See& see) const {
    int stopped = 0;
    const auto seen = [&](const auto&... objects) {
      ((stopped = stopped != 0 ? stopped : see(objects.ptr())), ...);
    };
    seen(type_, gradients_, other_, written_);
    for (const entry& e : entries_) seen(e.parameter, e.stepped, e.x, e.g);
    for (const group& own : groups_) {
      seen(own.dict, own.names);
      for (const py::object& value : own.values) seen(value);
    }
    return stopped;
  }

 private:
  struct entry {
    py::object parameter, stepped;
    py::array x, g;
    char* rest;  // where g lies between steps
  };
  struct group {
    py::dict dict;
    py::tuple names;
    bool any_rate;
    std::size_t first, end;          // entries
    std::vector<py::object> values;  // as followed
  };
  // While it lives, gradients are aimed at.
  class aimed;

  bool has_its_parameters(const group& own) const;
  void aim(std::size_t i, py::handle gradient);
  void put(std::size_t i, const py::object& gradient);
  bool aim_directly(const entry& e, py::handle gradient) const;

  dl_view view_ = nullptr;
  py::object type_, other_, written_;
  py::object gradients_ = py::list();  // what the step is given
  std::vector<entry> entries_;
  std::vector<group> groups_;
};

}  // namespace schuss
