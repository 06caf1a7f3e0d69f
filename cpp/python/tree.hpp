// Arrays in sequences and mappings, nested as the user likes, brought into the parameters' order.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace schuss {

namespace py = pybind11;

// The structure of nested dicts, lists and tuples, with a parameter's number in place of each
// array: an int, a dict or a list of such. Other containers than these three are Python's affair.
class tree {
 public:
  explicit tree(py::handle description) {
    if (PyLong_Check(description.ptr()) != 0) {
      number_ = description.cast<std::size_t>();
    } else if (PyDict_Check(description.ptr()) != 0) {
      shape_ = shape::mapping;
      for (const auto& [key, inner] : py::reinterpret_borrow<py::dict>(description)) {
        keys_.push_back(py::reinterpret_borrow<py::object>(key));
        inner_.emplace_back(inner);
      }
    } else {
      shape_ = shape::sequence;
      for (const py::handle& inner : py::reinterpret_borrow<py::sequence>(description))
        inner_.emplace_back(inner);
    }
    if (shape_ == shape::leaf) return;
    leaves_ = 0;
    flat_ = true;
    for (const tree& inner : inner_) {
      leaves_ += inner.leaves();
      flat_ = flat_ && inner.shape_ == shape::leaf;
      numbers_.push_back(inner.number_);
    }
  }

  // Takes one more structure in behind the others of a sequence.
  void append(tree inner) {
    leaves_ += inner.leaves();
    flat_ = flat_ && inner.shape_ == shape::leaf;
    numbers_.push_back(inner.number_);
    inner_.push_back(std::move(inner));
  }

  // Puts each array of `values` to its number in `found`; None in place of a part stands for all of
  // it. False where the structure is another one, or asks for more than a look into it.
  bool gather(PyObject* values, std::vector<py::object>& found) const {
    if (shape_ == shape::leaf) return put(values, number_, found);
    const bool none = values == Py_None;
    if (!none && !fits(values)) return false;
    for (std::size_t i = 0; i < inner_.size(); ++i) {
      const py::object value = none ? py::none() : member(values, i);
      if (!value) return false;
      PyObject* const v = value.ptr();
      if (!(flat_ ? put(v, numbers_[i], found) : inner_[i].gather(v, found))) return false;
    }
    return true;
  }

  // The number of the leaf that comes `place` after the first one, and what lies there.
  std::pair<std::size_t, py::object> at(const py::object& values, std::size_t place) const {
    if (shape_ == shape::leaf) return {number_, values};
    std::size_t i = flat_ ? std::exchange(place, 0) : 0;
    for (; place >= inner_[i].leaves(); ++i) place -= inner_[i].leaves();
    const bool there = values && of_shape(values.ptr());
    return inner_[i].at(there ? member(values.ptr(), i) : py::object(), place);
  }

  std::size_t leaves() const { return leaves_; }

  // For the garbage collector: calls see(key) for all keys until one is not 0.
  template <class See> int visit(const See& see) const {
    int stopped = 0;
    for (const py::object& key : keys_)
      if (stopped == 0) stopped = see(key.ptr());
    for (const tree& inner : inner_)
      if (stopped == 0) stopped = inner.visit(see);
    return stopped;
  }

 private:
  enum class shape { leaf, mapping, sequence };

  // A mapping of a class that finds its members in a way of its own is Python's affair, too.
  bool of_shape(PyObject* values) const {
    if (shape_ == shape::sequence) return PyList_Check(values) != 0 || PyTuple_Check(values) != 0;
    return PyDict_Check(values) != 0 &&
           Py_TYPE(values)->tp_as_mapping->mp_subscript == PyDict_Type.tp_as_mapping->mp_subscript;
  }
  bool fits(PyObject* values) const {
    if (!of_shape(values)) return false;
    const Py_ssize_t size =
        shape_ == shape::mapping ? PyDict_Size(values) : PySequence_Fast_GET_SIZE(values);
    return size == static_cast<Py_ssize_t>(inner_.size());
  }

  // A container where an array is expected is another structure.
  static bool put(PyObject* value, std::size_t number, std::vector<py::object>& found) {
    constexpr unsigned long containers =
        Py_TPFLAGS_LIST_SUBCLASS | Py_TPFLAGS_TUPLE_SUBCLASS | Py_TPFLAGS_DICT_SUBCLASS;
    if ((Py_TYPE(value)->tp_flags & containers) != 0) return false;
    found[number] = py::reinterpret_borrow<py::object>(value);
    return true;
  }

  // The member of a container of this shape, null where there is none. Held, since to find it a
  // key's own code may run, and change the container.
  py::object member(PyObject* values, std::size_t i) const {
    if (shape_ == shape::mapping) {
      PyObject* const value = PyDict_GetItemWithError(values, keys_[i].ptr());
      if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
      return py::reinterpret_borrow<py::object>(value);
    }
    return static_cast<Py_ssize_t>(i) < PySequence_Fast_GET_SIZE(values)
               ? py::reinterpret_borrow<py::object>(PySequence_Fast_ITEMS(values)[i])
               : py::object();
  }

  shape shape_ = shape::leaf;
  std::size_t number_ = 0;
  std::size_t leaves_ = 1;
  bool flat_ = false;                 // nothing but arrays lies in it
  std::vector<std::size_t> numbers_;  // theirs, in one row
  std::vector<py::object> keys_;
  std::vector<tree> inner_;
};

}  // namespace schuss
