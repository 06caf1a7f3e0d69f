// Python's interpreter, as far as pybind11 leaves something to be wished: calls, locks, its lock.
#pragma once

#include <pybind11/pybind11.h>

#include <iterator>
#include <utility>
#include <vector>

namespace schuss {

namespace py = pybind11;

// Calls f with these arguments: py::object's own way puts them into a tuple first.
template <class... Args> py::object call(const py::object& f, const Args&... args) {
  PyObject* const list[] = {args.ptr()..., nullptr};
  PyObject* const result = PyObject_Vectorcall(f.ptr(), list, sizeof...(args), nullptr);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

// Lets go of objects one by one, each out of reach before it is: as it goes Python may run, and the
// garbage collector look at the others.
inline void drop(std::vector<py::object>& objects) {
  for (py::object& object : objects) const py::object gone = std::exchange(object, py::object());
  objects.clear();
}

// Lets go of what holds objects, from one on, in the same way.
template <class T> void drop_from(std::vector<T>& holders, std::size_t first) {
  if (first >= holders.size()) return;
  const auto from = holders.begin() + static_cast<std::ptrdiff_t>(first);
  const std::vector<T> gone(std::make_move_iterator(from), std::make_move_iterator(holders.end()));
  holders.erase(from, holders.end());
}

// Holds a lock of Python's, as `with` does; where there is none, none.
class held {
 public:
  held(py::object acquire, py::object release) : release_(std::move(release)) {
    if (acquire) call(acquire);
  }
  ~held() {
    if (!release_) return;
    PyObject* const done = PyObject_CallNoArgs(release_.ptr());
    if (done == nullptr) PyErr_WriteUnraisable(release_.ptr());
    Py_XDECREF(done);
  }
  held(const held&) = delete;
  held& operator=(const held&) = delete;

 private:
  py::object release_;
};

// Works without the GIL.
template <class Work> void freely(const Work& work) {
  const py::gil_scoped_release released;
  work();
}

}  // namespace schuss
