// What an array has to be for a step to use it in place, and how messages say so.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "layout.hpp"

namespace schuss {

namespace py = pybind11;

using shape_t = std::vector<py::ssize_t>;

constexpr int c_order = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int f_order = py::detail::npy_api::NPY_ARRAY_F_CONTIGUOUS_;
constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// What a user passes in place of a gradient's array: rows of the first axis.
struct row_gradient {
  py::object index, values;

  // pybind11 makes room where an object was never initialized, and reads it.
  static void* operator new(std::size_t size) { return std::memset(::operator new(size), 0, size); }
  static void operator delete(void* room) { ::operator delete(room); }
};
// Not isinstance, for which an object may have Python of its own run; and none that was never
// initialized.
inline bool is_rows(py::handle g) {
  static const auto& rows = *new py::type(py::type::of<row_gradient>());
  return reinterpret_cast<PyObject*>(Py_TYPE(g.ptr())) == rows.ptr() &&
         py::detail::is_holder_constructed(g.ptr());
}

// ---- Reading an array's fields. They are read anew at every step, since an array can be resized,
// re-typed or frozen in between.

inline const py::detail::PyArray_Proxy* fields(py::handle a) {
  return py::detail::array_proxy(a.ptr());
}
inline const PyObject* ndarray() {
  return reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}
inline shape_t shape_of(py::handle a) {
  return {fields(a)->dimensions, fields(a)->dimensions + fields(a)->nd};
}
inline shape_t strides_of(py::handle a) {
  return {fields(a)->strides, fields(a)->strides + fields(a)->nd};
}
inline bool has_shape(py::handle a, const shape_t& shape) {
  return static_cast<std::size_t>(fields(a)->nd) == shape.size() &&
         std::equal(shape.begin(), shape.end(), fields(a)->dimensions);
}
inline py::ssize_t size_of(const shape_t& shape) {
  py::ssize_t size = 1;
  for (const py::ssize_t n : shape) size *= n;
  return size;
}

inline const py::detail::PyArrayDescr_Proxy* descriptor(py::handle a) {
  return py::detail::array_descriptor_proxy(fields(a)->descr);
}
// The dtype that the array has: a class may say another one.
inline py::dtype dtype_of(py::handle a) {
  return py::reinterpret_borrow<py::dtype>(fields(a)->descr);
}

// Types that are bfloat16, by their number in NumPy. They come from packages of their own, which
// need not be there, and are recognized by name.
inline std::vector<int> bfloat16_types;

// The storage kind of an array's dtype, if it is one of ours, and recognized. Runs no Python: what
// is read of several arrays in a row is so of all of them at once.
inline std::optional<kind> kind_of(py::handle a) {
  const py::detail::PyArrayDescr_Proxy* d = descriptor(a);
  constexpr int half = 23;  // of NumPy's C interface
  if (d->byteorder == '>') return std::nullopt;
  if (d->type_num == py::detail::npy_api::NPY_FLOAT_) return kind::float32;
  if (d->type_num == py::detail::npy_api::NPY_DOUBLE_) return kind::float64;
  if (d->type_num == half) return kind::float16;
  for (const int number : bfloat16_types)
    if (d->type_num == number) return kind::bfloat16;
  return std::nullopt;
}

// Whether what has a role are whole numbers, one for each row, that no kernel sees: how many steps
// it has done, or after how many of the array its last one was.
inline bool counts_rows(const std::string& role) {
  return role == "row_step" || role == "row_last";
}

// The kind of an array that stays beside a parameter, by its role: whole numbers are codes of
// blockfloat8 or their scales, and in a master the remainder.
inline std::optional<kind> kind_of(py::handle a, const std::string& role) {
  constexpr int int8 = 1, uint8 = 2, int16 = 3;  // of NumPy's C interface
  if (role == "state") return kind_of(a);        // nearly always
  const int number = descriptor(a)->type_num;
  if (role == "codes" && number == int8) return kind::signed8;
  if ((role == "codes" || role == "scales") && number == uint8) return kind::unsigned8;
  if (role == "codes" || role == "scales") return std::nullopt;
  if (role == "master" && number == int16 && descriptor(a)->byteorder != '>')
    return kind::remainder;
  if (counts_rows(role)) {
    const bool fits = descriptor(a)->kind == 'i' && dtype_of(a).itemsize() == sizeof(std::int64_t);
    return fits && descriptor(a)->byteorder != '>' ? std::optional(kind::none) : std::nullopt;
  }
  return kind_of(a);
}
inline bool in_whole_numbers(kind k) { return k >= kind::remainder; }

// Recognizes the dtype of an array that is of none of the known kinds; Python may run.
inline void recognize(py::handle a) {
  constexpr int user_types = 256;  // of NumPy's C interface
  if (kind_of(a) || descriptor(a)->type_num < user_types) return;
  const py::dtype dtype = dtype_of(a);
  if (dtype.itemsize() == 2 && py::str(dtype).equal(py::str("bfloat16")))
    bfloat16_types.push_back(dtype.num());
}

inline stream stream_of(py::handle a, kind k) { return {fields(a)->data, k, width_of(k)}; }
inline stream stream_of(py::handle a) { return stream_of(a, *kind_of(a)); }

// Whether an array of one kind may stand beside a parameter of another: all in float64, or none.
inline bool goes_with(std::optional<kind> k, kind parameter) {
  return k && (*k == kind::float64) == (parameter == kind::float64);
}

// An array's fields as a step found them good: while they stay, so does its stream. It holds
// nothing, so that none goes, and no Python runs, when it does.
class sighting {
 public:
  sighting(py::handle a, const shape_t& shape)
      : array_(a.ptr()),
        type_(Py_TYPE(a.ptr())),
        data_(fields(a)->data),
        number_(descriptor(a)->type_num),
        byteorder_(descriptor(a)->byteorder),
        shape_(shape.data()),
        dimensions_(fields(a)->nd),
        flags_(fields(a)->flags) {}

  py::handle array() const { return array_; }
  bool still() const { return still(array_); }
  bool still(py::handle a) const {
    if (Py_TYPE(a.ptr()) != type_) return false;  // it may be no array
    const py::detail::PyArray_Proxy* now = fields(a);
    const py::detail::PyArrayDescr_Proxy* d = descriptor(a);
    bool same = now->data == data_ && d->type_num == number_ && d->byteorder == byteorder_ &&
                now->flags == flags_ && now->nd == dimensions_;
    for (int i = 0; same && i < dimensions_; ++i) same = now->dimensions[i] == shape_[i];
    return same;
  }

 private:
  PyObject* array_;           // a gradient may be gone
  const PyTypeObject* type_;  // that of a member or of the class of gradients, which are kept
  const char* data_;
  int number_;
  char byteorder_;
  const py::ssize_t* shape_;
  int dimensions_, flags_;
};

// ---- Messages. Each names the array, says what was wrong and what is wanted.

inline std::string text(py::handle object) { return py::str(object).cast<std::string>(); }
inline std::string shape_text(const shape_t& shape) { return text(py::tuple(py::cast(shape))); }
inline std::string dtype_text(py::handle a) { return text(dtype_of(a)); }
inline std::string type_text(py::handle object) {
  return text(py::type::handle_of(object).attr("__name__"));
}
inline std::string description(py::handle a) {
  if (!py::isinstance<py::array>(a)) return type_text(a);
  const int order = fields(a)->flags & (c_order | f_order);
  const char* const in = order == 0 ? "no contiguous" : (order & c_order) != 0 ? "C" : "Fortran";
  return dtype_text(a) + " of shape " + shape_text(shape_of(a)) + " in " + in + " order";
}

[[noreturn]] inline void wrong_value(const std::string& label, const std::string& what) {
  throw py::value_error(label + ": " + what);
}
[[noreturn]] inline void wrong_type(const std::string& label, const std::string& what) {
  throw py::type_error(label + ": " + what);
}

// A masked array is an ndarray whose mask nothing here would heed. The class is only looked up
// where it has been imported: else there is none.
inline bool is_masked(py::handle a) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(a.ptr())) == ndarray()) return false;
  const auto module =
      py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("numpy.ma.core").ptr()));
  if (!module) {
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return false;
  }
  const py::object masked = module.attr("MaskedArray");
  return PyType_IsSubtype(Py_TYPE(a.ptr()), reinterpret_cast<PyTypeObject*>(masked.ptr())) != 0;
}

// What holds the same numbers as an x that is no array, by the module or the type that x is of.
struct remedy {
  const char* home;
  const char* array;
  bool shared;  // that array has the memory of x
  bool sum;     // x may be a sum or a mean of an array
};
constexpr remedy remedies[] = {
    {"torch", "x.detach().numpy()", true, false},
    {"tensorflow", "x.numpy()", false, false},
    {"jax", "np.asarray(x)", false, false},
    {"jaxlib", "np.asarray(x)", false, false},
    {"cupy", "x.get()", false, false},
    {"pandas", "x.to_numpy()", false, false},
    {"polars", "x.to_numpy()", false, false},
    {"xarray", "x.to_numpy()", false, false},
    {"scipy.sparse", "x.toarray()", false, false},
    {"builtins.list", "np.asarray(x, np.float32)", false, false},
    {"builtins.tuple", "np.asarray(x, np.float32)", false, false},
    {"builtins.int", "np.array(x, np.float32)", false, true},
    {"builtins.float", "np.array(x, np.float32)", false, true},
    {"numpy", "np.array(x, np.float32)", false, true},
};

// What is written has to be created as it should be: following the advice to pass a copy, the user
// would train that one.
inline std::string created_as(const std::string& array) {
  return "create it as w = " + array +
         " and keep using that w: a copy made for the step alone would be moved in its place";
}

// What to do about x, which is no array. `written`: a parameter or its state, else a gradient.
inline std::string remedy_for(py::handle x, bool written) {
  if (py::isinstance<py::str>(x)) return "pass a mapping of names to arrays, such as dict(pairs)";
  const bool several = py::isinstance<py::list>(x) || py::isinstance<py::tuple>(x);
  if (several && py::len(x) > 0 && py::isinstance<py::array>(x[py::int_(0)]))
    return "pass the array itself, without the " + type_text(x) + " around it";
  for (py::handle type : py::type::handle_of(x).attr("__mro__")) {
    const std::string home = text(type.attr("__module__")) + "." + text(type.attr("__name__"));
    for (const remedy& r : remedies) {
      if ((home + ".").rfind(std::string(r.home) + ".", 0) != 0) continue;
      const std::string pass = std::string("pass ") + r.array;
      if (written) return r.shared ? pass + ", which shares its memory" : created_as(r.array);
      if (!r.sum) return pass;
      return "a sum or mean keeps its dimensions with keepdims=True; for a parameter without any " +
             pass;
    }
  }
  return written ? "pass the array that is to be used in place" : "pass the array of its gradient";
}

inline std::string no_array(py::handle x, const std::string& label, bool written) {
  return label + ": not a numpy.ndarray (" + type_text(x) + "); " + remedy_for(x, written);
}

// What a message about an array adds where it is complex: the view to pass.
inline std::string view_of_complex(py::handle a) {
  const std::string dtype = py::isinstance<py::array>(a) ? dtype_text(a) : "";
  if (dtype != "complex64" && dtype != "complex128") return "";
  return std::string("; pass z.view(np.") + (dtype == "complex64" ? "float32" : "float64") +
         "), which has real and imaginary parts side by side, in z's memory";
}

// What every array must be, in the order in which a user would want to hear of it. `written`: a
// parameter or its state, else a gradient. Python may run at first; what is found good then is.
inline void require_array(py::handle a, const std::string& label, bool written) {
  if (!py::isinstance<py::array>(a)) throw py::type_error(no_array(a, label, written));
  if (is_masked(a))
    wrong_type(label,
               "a masked array, whose mask would be ignored; pass its .data, which shares its "
               "memory");
  recognize(a);
  if (!kind_of(a)) {
    if (const std::string view = view_of_complex(a); !view.empty())
      wrong_type(label, "dtype " + dtype_text(a) + " is not supported" + view);
    if (dtype_of(a).attr("isnative").cast<bool>())
      wrong_type(label, "dtype " + dtype_text(a) +
                            " is not supported; wanted float32, float64, float16 or bfloat16");
    const std::string native = "astype(x.dtype.newbyteorder('='))";
    wrong_value(label, "not in native byte order (dtype " + text(dtype_of(a).attr("str")) + "); " +
                           (written ? created_as("x." + native) : "pass x." + native));
  }
  if ((fields(a)->flags & (c_order | f_order)) == 0)
    wrong_value(label, "not contiguous (strides " + shape_text(strides_of(a)) + ", shape " +
                           shape_text(shape_of(a)) + "); " +
                           (written ? "pass the whole array that it is a view of, or " +
                                          created_as("np.ascontiguousarray(x)")
                                    : "pass np.ascontiguousarray(x)"));
  if ((fields(a)->flags & aligned) == 0)
    wrong_value(label, "not aligned to its element; " +
                           (written ? created_as("x.copy()") : std::string("pass x.copy()")));
}

inline void require_writeable(py::handle a, const std::string& label) {
  if ((fields(a)->flags & writeable) == 0)
    wrong_value(label,
                "read-only, but the step writes to it; allow that (x.flags.writeable = True), or "
                "where its memory can't be written, " +
                    created_as("x.copy()"));
}

inline void require_parameter(py::handle a, const std::string& label) {
  require_array(a, label, true);
  require_writeable(a, label);
}

}  // namespace schuss
