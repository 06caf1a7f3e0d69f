#include "recipe.hpp"

#include <limits>

namespace schuss {

const std::vector<stage>& stages() {
  constexpr double infinite = std::numeric_limits<double>::infinity();
#define SCHUSS_STAGE(name, idle) {#name, &scalars::name, idle},
  static const std::vector<stage> all = {SCHUSS_STAGES(SCHUSS_STAGE)};
#undef SCHUSS_STAGE
  return all;
}

scalars idle_scalars(int rule) {
  scalars c{};
  c.rule = rule;
  for (const stage& s : stages()) c.*s.place = s.idle;
  return c;
}

recipe::recipe(const py::object& from, const py::object& settings_name)
    : part(from.attr("part")),
      scale(from.attr("scale")),
      told(from.attr("told")),
      follow(from.attr("follow")),
      undone(from.attr("undone")),
      backend(from.attr("backend")),
      direct(from.attr("direct")),
      convert(from.attr("convert")),
      sums(from.attr("sums")),
      whole(from.attr("whole")),
      remembered(from.attr("remembered").cast<std::vector<py::object>>()),
      shared(from.attr("shared").cast<std::vector<py::object>>()),
      limit(from.attr("limit").cast<double>()),
      per(from.attr("per").cast<std::string>()),
      measures_norm(from.attr("measures_norm").cast<bool>()),
      propagates(from.attr("propagates").cast<bool>()),
      reads_loss(from.attr("reads_loss").cast<bool>()),
      totals(from.attr("totals").cast<bool>()),
      adapts(from.attr("adapts").cast<bool>()),
      zero_grad(from.attr("zero_grad").cast<bool>()),
      counts_rows(from.attr("counts_rows").cast<bool>()),
      wanted(from.attr("wanted").cast<unsigned>()),
      key(from.attr("key").cast<std::uint32_t>()) {
  if (!whole.is_none()) sizes = whole.attr("sizes").cast<std::vector<std::ptrdiff_t>>();
  for (const py::handle& group : from.attr("groups"))
    groups.push_back({py::reinterpret_borrow<py::object>(group),
                      py::none(),
                      group.attr(settings_name).attr("form"),
                      py::none(),
                      py::none(),
                      {},
                      0,
                      0});
}

namespace {

[[noreturn]] void missing(py::handle name) {
  throw py::value_error("scalars: '" + name.cast<std::string>() + "' is missing");
}

double* stage_named(scalars& c, PyObject* name) {
  static const auto& by_name = *new std::map<PyObject*, double scalars::*>([] {
    std::map<PyObject*, double scalars::*> found;
    for (const stage& s : stages()) found[PyUnicode_InternFromString(s.name)] = s.place;
    return found;
  }());
  const auto found = by_name.find(name);  // names are interned on both sides
  return found == by_name.end() ? nullptr : &(c.*found->second);
}

double* scalar_named(scalars& c, const py::object& names, PyObject* name) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(names.ptr()); ++k)
    if (PyTuple_GET_ITEM(names.ptr(), k) == name) return &c.rule_scalars[k];
  return nullptr;
}

template <class Place> void set_each(const py::handle& values, const Place& place) {
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t next = 0; PyDict_Next(values.ptr(), &next, &name, &value) != 0;) {
    double* const found = place(name);
    if (found == nullptr)
      throw py::value_error("scalars: '" + py::handle(name).cast<std::string>() + "' is unknown");
    *found = number(py::reinterpret_borrow<py::object>(value));
  }
}

}  // namespace

double number(const py::object& value) {
  const double found = PyFloat_AsDouble(value.ptr());
  if (found == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  return found;
}

void read_rule(scalars& c, const py::object& names, const py::dict& rule) {
  for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(names.ptr()); ++k) {
    PyObject* const name = PyTuple_GET_ITEM(names.ptr(), k);
    PyObject* const value = PyDict_GetItemWithError(rule.ptr(), name);
    if (value == nullptr) {
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      missing(name);
    }
    c.rule_scalars[k] = number(py::reinterpret_borrow<py::object>(value));
  }
}

void override_rule(scalars& c, const py::object& names, const py::handle& values) {
  set_each(values, [&](PyObject* name) { return scalar_named(c, names, name); });
}

void override_stages(scalars& c, const py::handle& values) {
  set_each(values, [&](PyObject* name) { return stage_named(c, name); });
}

void read_part(scalars& c, const py::object& names, const py::dict& rule, const py::dict& around) {
  c = idle_scalars(c.rule);
  read_rule(c, names, rule);
  override_stages(c, around);
}

}  // namespace schuss
