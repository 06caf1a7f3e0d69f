// The binding: what of all this Python sees.
#include <map>

#include "tensors.hpp"
#include "threads.hpp"

namespace schuss {
namespace {

// ---- The conversions and the quotient of the table in use, for the proofs over all numbers
// (tests/exact/test_storage.py and test_quotient.py).

kind half_named(const std::string& name) {
  if (name == "float16") return kind::float16;
  if (name == "bfloat16") return kind::bfloat16;
  throw py::value_error("kind: '" + name + "', wanted float16 or bfloat16");
}

py::array_t<float> widened(const std::string& from,
                           const py::array_t<std::uint16_t, py::array::c_style>& in) {
  const stream bits{const_cast<std::uint16_t*>(in.data()), half_named(from), 2};
  py::array_t<float> out(in.size());
  kernels().convert(bits, {out.mutable_data(), kind::float32, sizeof(float)}, in.size());
  return out;
}

py::array_t<std::uint16_t> narrowed(const std::string& to,
                                    const py::array_t<float, py::array::c_style>& in) {
  py::array_t<std::uint16_t> out(in.size());
  const stream bits{out.mutable_data(), half_named(to), 2};
  const stream wide{const_cast<float*>(in.data()), kind::float32, sizeof(float)};
  kernels().convert(wide, bits, in.size());
  return out;
}

using floats = py::array_t<float, py::array::c_style>;
floats quotients(const floats& a, const floats& b) {
  if (a.size() != b.size()) throw py::value_error("b: of another size than a");
  floats found(a.size());
  kernels().divide(a.data(), b.data(), a.size(), found.mutable_data());
  return found;
}

// ---- A sum of arrays alone, of which Python has looked at everything.

void average(const std::vector<py::array>& arrays, const std::vector<double>& weights,
             const py::array& out) {
  std::vector<piece> pieces;
  for (std::size_t j = 0; j < arrays.size(); ++j)
    pieces.push_back({fields(arrays[j])->data, kind_of(arrays[j]).value(), weights.at(j)});
  const sum up{pieces.data(), static_cast<std::ptrdiff_t>(pieces.size()), 0, nullptr, 1};
  std::vector<span> all(1);
  span& a = all[0];
  a.x = stream_of(out);
  a.g = {const_cast<sum*>(&up), kind::sum, width_of(pieces.at(0).kind)};
  a.size = a.row_size = out.size();
  a.width = a.x.width + static_cast<std::ptrdiff_t>(pieces.size()) * a.g.width;
  freely([&] { add(kernels(), all); });
}

// ---- A step of one array alone, which takes about as long as pybind11's way to a method.

PyObject* alone(PyObject* self, PyObject* const* given, Py_ssize_t size) {
  try {
    if (size != 7) throw py::type_error("alone: (owner, number, x, g, lr, grad_scale, finished)");
    const auto at = [&](int i) { return py::reinterpret_borrow<py::object>(given[i]); };
    plan& own = py::cast<plan&>(py::handle(self));
    const bool done =
        own.alone(at(0), py::cast<std::size_t>(at(1)), at(2), at(3), at(4), at(5), at(6));
    return py::bool_(done).release().ptr();
  } catch (...) {
    py::detail::try_translate_exceptions();
    return nullptr;
  }
}

py::object alone_of(const py::object& own) {
  static PyMethodDef method = {
      "alone", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&alone)), METH_FASTCALL,
      "Steps one member: (owner, number, x, g, lr, grad_scale, finished), where None leaves out."};
  return py::reinterpret_steal<py::object>(PyCFunction_New(&method, own.ptr()));
}

// ---- A plan is part of the optimizer's cycles, as what lies in bound Rows may be, and the garbage
// collector has to know.

// A member of Rows that were initialized.
py::object there(const py::object& member) {
  if (!member) throw py::type_error("Rows: never initialized");
  return member;
}

template <class See> int visit(const plan& own, const See& see) { return own.visit(see); }
template <class See> int visit(const tensors& own, const See& see) { return own.visit(see); }
template <class See> int visit(const row_gradient& own, const See& see) {
  const int stopped = see(own.index.ptr());
  return stopped != 0 ? stopped : see(own.values.ptr());
}

template <class Own> int traverse(PyObject* self, visitproc each, void* arg) {
  if (PyTypeObject* const type = Py_TYPE(self))
    if (const int stopped = each(reinterpret_cast<PyObject*>(type), arg); stopped != 0)
      return stopped;
  if (!py::detail::is_holder_constructed(self)) return 0;
  return visit(py::cast<const Own&>(py::handle(self)),
               [&](PyObject* object) { return object == nullptr ? 0 : each(object, arg); });
}

template <class Own> int clear(PyObject* self) {
  if (!py::detail::is_holder_constructed(self)) return 0;
  const Own gone = std::exchange(py::cast<Own&>(py::handle(self)), Own());
  return 0;
}

template <class Own> void collected(PyHeapTypeObject* type) {
  type->ht_type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->ht_type.tp_traverse = traverse<Own>;
  type->ht_type.tp_clear = clear<Own>;
}

}  // namespace
}  // namespace schuss

// Needs the interpreter's lock, and is of one interpreter: a step holds parameters, plan and
// counters together by the lock, and what the crew and the limits are is the process's.
PYBIND11_MODULE(_core, m, pybind11::mod_gil_used(),
                pybind11::multiple_interpreters::not_supported()) {
  using namespace schuss;
  m.doc() = "The compiled half of schuss: rules, driver, and the contract of the arrays.";

  py::class_<row_gradient>(
      m, "Rows", py::is_final(), py::custom_type_setup(collected<row_gradient>),
      "The rows of a gradient that are not zero: rows of the first axis of a parameter.\n\n"
      "index    their numbers: one axis of int64 or int32, in any order; where one comes more than "
      "once,\n         its values are summed in the order given\n"
      "values   the gradients of these rows: of shape (len(index), *param.shape[1:])\n\n"
      "It comes wherever the array of a gradient does. The step reads and writes these rows alone.")
      .def(py::init<py::object, py::object>(), py::arg("index"), py::arg("values"))
      .def_property_readonly("index", [](const row_gradient& g) { return there(g.index); })
      .def_property_readonly("values", [](const row_gradient& g) { return there(g.values); })
      .def("__reduce__",
           [](const py::object& own) {
             const py::object index = own.attr("index"), values = own.attr("values");
             return py::make_tuple(py::type::of(own), py::make_tuple(index, values));
           })
      .def("__repr__", [](const row_gradient& g) {
        return "Rows(" + description(there(g.index)) + ", " + description(there(g.values)) + ")";
      });

  py::class_<plan>(m, "Plan", py::custom_type_setup(collected<plan>),
                   "The arrays of a step, their contract and their counters.")
      .def(py::init<>())
      .def("add", &plan::add, py::arg("labels"), py::arg("x"), py::arg("keeps"), py::arg("g"),
           py::arg("group"), py::arg("decays"), py::arg("memory"), py::arg("case"),
           py::arg("position"))
      .def("keep_first", &plan::keep_first, py::arg("size"))
      .def("rebind", &plan::rebind, py::arg("arrays"))
      .def("require_disjoint", &plan::require_disjoint)
      .def("expect", &plan::expect, py::arg("structures"))
      .def("expect_more", &plan::expect_more, py::arg("structure"))
      .def("watch", &plan::watch, py::arg("containers"))
      .def("watch_more", &plan::watch_more, py::arg("container"), py::arg("structure"))
      .def("gather", &plan::gather, py::arg("values"))
      .def("serve", &plan::serve, py::arg("lock"), py::arg("make"), py::arg("match"))
      .def(
          "step",
          [](plan& own, const py::object& grads, const py::object& lr, const py::object& loss,
             const py::object& grad_scale) { return own.step({grads, lr, loss, grad_scale}); },
          py::arg("grads"), py::arg("lr"), py::arg("loss"), py::arg("grad_scale"))
      .def(
          "step",
          [](plan& own, const py::object& grads, const py::object& lr, const py::object& loss,
             const py::object& grad_scale, const py::object& pieces, std::vector<double> weights,
             bool reports) {
            return own.step({grads, lr, loss, grad_scale, pieces, std::move(weights), reports});
          },
          py::arg("grads"), py::arg("lr"), py::arg("loss"), py::arg("grad_scale"),
          py::arg("pieces"), py::arg("weights"), py::arg("report"))
      .def(
          "open",
          [](plan& own, const py::object& lr, const py::object& loss, const py::object& grad_scale,
             bool reports, const py::object& before, const py::object& arrival) {
            own.open({py::none(), lr, loss, grad_scale, py::none(), {}, reports, true}, before,
                     arrival);
          },
          py::arg("lr"), py::arg("loss"), py::arg("grad_scale"), py::arg("report"),
          py::arg("before"), py::arg("arrival"))
      .def("arrive", &plan::arrive, py::arg("number"), py::arg("g"),
           py::arg("weights") = std::vector<double>())
      .def("close", &plan::close, py::arg("arrival"), py::arg("failed"))
      .def_property_readonly("arriving", &plan::arriving)
      .def_property_readonly("arrived", &plan::arrived)
      .def_property_readonly("report", &plan::report)
      .def(
          "examined",
          [](plan& own, const py::object& grads, std::optional<std::size_t> alone) {
            request asked{grads, py::none(), py::none(), py::none()};
            asked.alone = alone;
            return own.examined(asked);
          },
          py::arg("grads"), py::arg("alone") = py::none())
      .def("once", &plan::once, py::arg("x"), py::arg("g"), py::arg("keeps"), py::arg("finished"),
           py::arg("memory"), py::arg("shared"), py::arg("lr"), py::arg("loss"))
      .def_property_readonly("alone", &alone_of)
      .def("replace_by_last", &plan::replace_by_last, py::arg("number"))
      .def("set_count", &plan::set_count, py::arg("number"), py::arg("finished"), py::arg("memory"))
      .def("change", &plan::change)
      .def("enter", &plan::enter_alone)
      .def("leave", &plan::leave)
      .def_property_readonly("busy", &plan::busy)
      .def("count", &plan::count_of, py::arg("number"))
      .def("memory", &plan::memory, py::arg("number"))
      .def("restore", &plan::restore, py::arg("iterations"), py::arg("counts"), py::arg("memories"),
           py::arg("shared"), py::arg("norm"))
      .def_readwrite("barred", &plan::barred)
      .def_property_readonly("grad_norm", &plan::grad_norm)
      .def_property_readonly("last_norm", &plan::last_norm)
      .def_property_readonly("shared", &plan::shared)
      .def_property("iterations", &plan::iterations, &plan::set_iterations);

  py::class_<tensors>(m, "Tensors", py::custom_type_setup(collected<tensors>),
                      "Parameters that are tensors of another library, and their gradients.")
      .def(py::init<py::object, py::type, py::object, py::object>(), py::arg("exchange"),
           py::arg("of"), py::arg("other"), py::arg("written"))
      .def("begin_group", &tensors::begin_group, py::arg("group"), py::arg("names"),
           py::arg("any_rate"))
      .def("add", &tensors::add, py::arg("parameter"), py::arg("stepped"), py::arg("x"),
           py::arg("g"))
      .def("replace", &tensors::replace, py::arg("number"), py::arg("x"))
      .def("follow", &tensors::follow)
      .def("holds", &tensors::holds, py::arg("groups"))
      .def("rate", &tensors::rate, py::arg("groups"))
      .def("step", &tensors::step, py::arg("plan"), py::arg("lr"), py::arg("loss"));

  m.def("stages", [] {
    std::vector<std::pair<std::string, double>> all;
    for (const stage& s : stages()) all.emplace_back(s.name, s.idle);
    return all;
  });
  m.def("measured", [] {
    return std::map<std::string, unsigned>{{"x", measured::xx},
                                           {"g", measured::gg},
                                           {"u", measured::uu},
                                           {"agree", measured::agree},
                                           {"own", measured::own}};
  });
  m.def(
      "require_array",
      [](const py::object& x, const std::string& label) { require_array(x, label, false); },
      py::arg("x"), py::arg("label"));
  m.def("require_parameter", &require_parameter, py::arg("x"), py::arg("label"));
  m.def(
      "no_array",
      [](const py::object& x, const std::string& label) { return no_array(x, label, true); },
      py::arg("x"), py::arg("label"));
  m.def("rules", [] {
    std::vector<std::tuple<std::string, std::vector<int>, int, bool>> all;
    for (int i = 0; i < kernels().size; ++i) {
      const rule& r = kernels().rules[i];
      all.emplace_back(r.name, std::vector<int>(r.traits, r.traits + r.states), r.scalars,
                       r.measures);
    }
    return all;
  });
  m.def("compiled_isas", &compiled_isas);
  m.def("found_isas", &found_isas);
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("use_isa", &use_isa, py::arg("name"));
  m.def("average", &average, py::arg("arrays"), py::arg("weights"), py::arg("out"));
  m.def("divide", &quotients, py::arg("a"), py::arg("b"));
  m.def("widen", &widened, py::arg("kind"), py::arg("bits"),
        "The numbers that these bits of float16 or bfloat16 stand for, as a step reads them.");
  m.def("narrow", &narrowed, py::arg("kind"), py::arg("numbers"),
        "The bits of these numbers in float16 or bfloat16, as a step stores them.");

  m.def("threads", [] {
    const thread_limit limit = threads();
    return std::make_pair(limit.threads, std::string(limit.reason));
  });
  m.def("set_threads_here", &set_threads_here, py::arg("n"));
  m.def("set_threads_everywhere", &set_threads_everywhere, py::arg("n"));
  m.def("set_threads_from_environment", &set_threads_from_environment, py::arg("n"));
  m.def("set_quota", &set_quota, py::arg("n"));
  m.def("set_grain", &set_grain, py::arg("n"));
  m.def("widest_region", &widest_region);
  m.def(
      "share",
      [](std::ptrdiff_t size, std::ptrdiff_t bytes_per_element, std::ptrdiff_t before,
         std::ptrdiff_t total, int rank, int team) {
        const auto begin = [&](int k) {
          return edge(size, size, bytes_per_element, cut(total, k, team) - before);
        };
        return std::make_pair(begin(rank), begin(rank + 1));
      },
      py::arg("size"), py::arg("bytes_per_element"), py::arg("before"), py::arg("total"),
      py::arg("rank"), py::arg("team"));
}
