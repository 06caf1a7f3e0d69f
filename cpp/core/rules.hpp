// Every rule, simplest first: what happens to one element.
//
// A rule is a struct of scalars, all of type T. Its call operator takes the parameter x, the
// gradient g and one reference for each state array, updates the state and returns the update u;
// the block loop then stores x = keep*x - u. It knows no loop, pointer, thread, instruction set,
// decay or storage type. Letters and order of operations are those of the specification,
// python/schuss/reference/rules.py, and nothing is contracted, so both end on the same bits. A
// weight goes on one factor of a square, (w*g)*g as in PyTorch: g*g overflows far earlier, and what
// is infinite once stays so.
//
// T is a pack (pack.hpp): operators, sqrt and fabs are those of a number, and select(c, a, b) is
// c ? a : b for each element. What is stored in less than T says so by a trait (kernel.hpp).
#pragma once

#include "elements.hpp"

namespace schuss {
namespace {

// What a rule measures of an element, where its step depends on sums over the array: two numbers,
// of the state as it is before the step.
template <class T> struct measurement {
  doubles<T> p, q;
};

// Above 0 where g and its predecessor p agree in sign, below where they don't. Their product, as
// others compute it, is 0 where it is too small for its type.
template <class T> T agreement(T g, T p, T product) {
  const T signs = sign(g) * sign(p), multiplied = g * p;
  return select(product > 0, multiplied, signs);
}

// A step size after agreement q.
template <class T> T scaled(T s, T q, T minus, T plus) {
  return select(q > 0, plus * s, select(q < 0, minus * s, s));
}

// A gain after agreement q: it grows by a sum and shrinks by a factor.
template <class T> T gained(T k, T q, T add, T mul) {
  return select(q > 0, k + add, select(q < 0, mul * k, k));
}

template <class T> struct sgd {
  T lr;
  T operator()(T, T g) const { return lr * g; }
};

template <class T> struct momentum {
  T mu, w, s;
  static constexpr trait states[] = {mean};
  T operator()(T, T g, T& b) const {
    b = mu * b + w * g;
    return s * b;
  }
};

template <class T> struct nesterov {
  T mu, w, a, s;
  static constexpr trait states[] = {mean};
  T operator()(T, T g, T& b) const {
    b = mu * b + w * g;
    return s * (a * g + mu * b);
  }
};

template <class T> struct adagrad {
  T lr, inside, eps, guard;
  static constexpr trait states[] = {second};
  T operator()(T, T g, T& s) const {
    s = s + g * g;
    const T u = lr * g / (sqrt(s + inside) + eps);
    return select(s <= guard, T(0), u);
  }
};

template <class T> struct rmsprop {
  T alpha, w, kv, inside, eps, lr;
  static constexpr trait states[] = {second};
  T operator()(T, T g, T& v) const {
    v = alpha * v + (w * g) * g;
    return lr * (g / (sqrt(kv * v + inside) + eps));
  }
};

template <class T> struct rmsprop_momentum {
  T alpha, w, kv, inside, eps, mu, c, direct, s;
  static constexpr trait states[] = {second, mean};
  T operator()(T, T g, T& v, T& b) const {
    v = alpha * v + (w * g) * g;
    const T n = c * (g / (sqrt(kv * v + inside) + eps));
    b = mu * b + n;
    return direct * n + s * b;
  }
};

template <class T> struct rmsprop_centered {
  T alpha, w, kv, ka, least, inside, eps, lr;
  static constexpr trait states[] = {second, slow};
  T operator()(T, T g, T& v, T& a) const {
    v = alpha * v + (w * g) * g;
    a = a + w * (g - a);
    const T q = maximum(kv * v - (ka * a) * (ka * a), least);
    return lr * (g / (sqrt(q + inside) + eps));
  }
};

template <class T> struct rmsprop_centered_momentum {
  T alpha, w, kv, ka, least, inside, eps, mu, c, direct, s;
  static constexpr trait states[] = {second, slow, mean};
  T operator()(T, T g, T& v, T& a, T& b) const {
    v = alpha * v + (w * g) * g;
    a = a + w * (g - a);
    const T q = maximum(kv * v - (ka * a) * (ka * a), least);
    const T n = c * (g / (sqrt(q + inside) + eps));
    b = mu * b + n;
    return direct * n + s * b;
  }
};

template <class T> struct adadelta {
  T rho, w, eps, lr;
  static constexpr trait states[] = {second, second};
  T operator()(T, T g, T& v, T& d) const {
    v = rho * v + (w * g) * g;
    const T u = sqrt(d + eps) / sqrt(v + eps) * g;
    d = rho * d + (w * u) * u;
    return lr * u;
  }
};

// The update is -x after the step: it goes with keep = 0.
template <class T> struct ftrl {
  T per_lr, shrink, l1, l2;
  static constexpr trait states[] = {second, slow};
  T operator()(T x, T g, T& n, T& z) const {
    const T before = sqrt(n);
    n = n + g * g;
    const T root = sqrt(n);
    z = z + ((g + shrink * x) - per_lr * (root - before) * x);
    return (z - clamp(z, -l1, l1)) / (per_lr * root + l2);
  }
};

template <class T> struct adam {
  T w1, beta2, w2, step, denom, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    return step * (m / (denom * sqrt(v) + eps));
  }
  measurement<T> measure(T, T g, T, T v) const {
    return {g / maximum(beta2 * v + (w2 * g) * g, eps * eps) * g, T(0)};
  }
};

// Adam with eps wherever a library puts it, and with a term of the gradient itself (NAdam). Where v
// is not above the guard, the step is not divided, but multiplied by `under`: Adagrad's guard
// against 0/0, and RAdam's first steps.
template <class T> struct general_adam {
  T w1, beta2, w2, cm, cg, kv, inside, kd, least, eps, guard, under;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    const T n = cm * m + cg * g;
    const T u = n / (maximum(sqrt(kv * v + inside) * kd, least) + eps);
    return select(v <= guard, under * n, u);
  }
};

// Adam whose decay joins the mean after the moments, and so is divided, too.
template <class T> struct decayed_adam {
  T w1, beta2, w2, cm, cx, kd, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T x, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    return (cm * m + cx * x) / (sqrt(v) * kd + eps);
  }
};

template <class T> struct amsgrad {
  T w1, beta2, w2, ka, cm, kv, inside, kd, least, eps, guard, under;
  static constexpr trait states[] = {mean, second, peak};
  T operator()(T, T g, T& m, T& v, T& q) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    q = maximum(q, ka * v);
    const T n = cm * m;
    const T u = n / (maximum(sqrt(kv * q + inside) * kd, least) + eps);
    return select(q <= guard, under * n, u);
  }
};

template <class T> struct adamax {
  T w1, beta2, inside, step, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& q) const {
    m = m + w1 * (g - m);
    q = maximum(beta2 * q, fabs(g) + inside);
    return step * (m / (q + eps));
  }
};

template <class T> struct adabelief {
  T w1, beta2, w2, inside, step, denom, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    const T d = g - m;
    v = beta2 * v + (w2 * d) * d + inside;
    return step * (m / (denom * sqrt(v) + eps));
  }
};

template <class T> struct yogi {
  T w1, hold, w2, step, denom, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = hold * v - (w2 * sign(v - g * g) * g) * g;
    return step * (m / (denom * sqrt(v) + eps));
  }
};

// Divides by the root of v as it was before. A first step, with clip = 0, leaves m and x.
template <class T> struct adopt {
  T clip, eps, w1, beta2, w2, lr;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    const T n = clamp(g / maximum(sqrt(v), eps), -clip, clip);
    m = m + w1 * (n - m);
    v = beta2 * v + (w2 * g) * g;
    return lr * m;
  }
};

template <class T> struct grams {
  T w1, beta2, w2, step, denom, eps;
  static constexpr trait states[] = {mean, second};
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    return sign(g) * (step * (fabs(m) / (denom * sqrt(v) + eps)));
  }
};

template <class T> struct ademamix {
  T w1, w3, beta2, w2, cm, cs, kv, inside, eps;
  static constexpr trait states[] = {mean, slow, second};
  T operator()(T, T g, T& m, T& s, T& v) const {
    m = m + w1 * (g - m);
    s = s + w3 * (g - s);
    v = beta2 * v + (w2 * g) * g;
    return (cm * m + cs * s) / (sqrt(kv * v + inside) + eps);
  }
};

// The gradient before the first one is that one itself.
template <class T> struct adan {
  T first, w1, w2, beta3, w3, mix, cm, cd, kv, inside, eps;
  static constexpr trait states[] = {slow, mean, second, exact};
  T operator()(T, T g, T& m, T& d, T& v, T& p) const {
    const T change = g - p, diff = select(first > 0, T(0), change), y = g + mix * diff;
    m = m + w1 * (g - m);
    d = d + w2 * (diff - d);
    v = beta3 * v + (w3 * y) * y;
    p = g;
    return (cm * m + cd * d) / (sqrt(kv * v + inside) + eps);
  }
};

// h is the caller's affair: see Sophia.update_hessian.
template <class T> struct sophia {
  T w1, cm, rho, least, eps, lr;
  static constexpr trait states[] = {slow, exact};
  T operator()(T, T g, T& m, T& h) const {
    m = m + w1 * (g - m);
    return lr * clamp(cm * m / (maximum(rho * h, least) + eps), T(-1), T(1));
  }
};

template <class T> struct signsgd {
  T lr;
  T operator()(T, T g) const { return lr * sign(g); }
};

// Where w1 = w2 it is the sign of the mean itself: Signum.
template <class T> struct lion {
  T w1, w2, lr;
  static constexpr trait states[] = {slow};
  T operator()(T, T g, T& m) const {
    const T c = m + w1 * (g - m);
    m = m + w2 * (g - m);
    return lr * sign(c);
  }
};

// Rprop without memory of its steps. Where the sign of the gradient turns, it counts as `least`
// says: as 0, or as it is.
template <class T> struct rprop {
  T product, minus, plus, low, high, least;
  static constexpr trait states[] = {exact, exact};
  T operator()(T, T g, T& p, T& s) const {
    const T q = agreement(g, p, product);
    s = clamp(scaled(s, q, minus, plus), low, high);
    p = select(q < least, T(0), g);
    return s * sign(p);
  }
};

// Rprop that takes its last step back where the sign of the gradient turns.
template <class T> struct rprop_backtracking {
  T product, minus, plus, low, high, back;
  static constexpr trait states[] = {exact, exact, exact};
  T operator()(T, T g, T& p, T& s, T& d) const {
    const T q = agreement(g, p, product);
    s = clamp(scaled(s, q, minus, plus), low, high);
    p = select(q < 0, T(0), g);
    const T forth = s * sign(g), undone = -back * d, u = select(q < 0, undone, forth);
    d = u;
    return u;
  }
};

template <class T> struct delta_bar_delta {
  T add, mul, low, high, lr;
  static constexpr trait states[] = {exact, exact};
  T operator()(T, T g, T& k, T& p) const {
    k = clamp(gained(k, agreement(g, p, T(0)), add, mul), low, high);
    p = g;
    return lr * (k * g);
  }
};

// The gain follows the agreement of the gradient with the velocity.
template <class T> struct delta_bar_delta_velocity {
  T add, mul, low, high, mu, lr;
  static constexpr trait states[] = {exact, mean};
  T operator()(T, T g, T& k, T& b) const {
    k = clamp(gained(k, agreement(g, b, T(0)), add, mul), low, high);
    b = mu * b + k * g;
    return lr * b;
  }
};

template <class T> struct delta_bar_delta_momentum {
  T add, mul, low, high, mu, lr;
  static constexpr trait states[] = {exact, exact, mean};
  T operator()(T, T g, T& k, T& p, T& b) const {
    k = clamp(gained(k, agreement(g, p, T(0)), add, mul), low, high);
    p = g;
    b = mu * b + k * g;
    return lr * b;
  }
};

// a is the mean of x as it is after the step; with share = 1 it is x itself.
template <class T> struct asgd {
  T decay, rate, share;
  static constexpr trait states[] = {point};
  T operator()(T x, T g, T& a) const {
    const T u = decay * x + rate * g, after = x - u, start = select(share < 1, a, after);
    a = start + share * (after - start);
    return u;
  }
};

// x is where the gradient is taken, z the descent; z starts at x.
template <class T> struct schedule_free {
  T first, ck, step, lr;
  static constexpr trait states[] = {point};
  T operator()(T x, T g, T& z) const {
    const T start = select(first > 0, x, z), u = step * g - ck * (start - x);
    z = start - lr * g;
    return u;
  }
};

template <class T> struct schedule_free_adam {
  T first, beta2, w2, denom, eps, decay, ck, step, lr;
  static constexpr trait states[] = {point, second};
  T operator()(T x, T g, T& z, T& v) const {
    v = beta2 * v + (w2 * g) * g;
    const T d = g / (denom * sqrt(v) + eps) + decay * x;
    const T start = select(first > 0, x, z), u = step * d - ck * (start - x);
    z = start - lr * d;
    return u;
  }
};

// ---- Rules whose scalars follow from sums over the array, or over all arrays

template <class T> struct lars {
  T decay, mu, w, a, s;
  static constexpr trait states[] = {mean};
  T operator()(T x, T g, T& b) const {
    b = mu * b + w * (g + decay * x);
    return s * b + a * (g + decay * x);
  }
  measurement<T> measure(T x, T g, T) const { return {square(g + decay * x), T(0)}; }
};

template <class T> struct lamb {
  T w1, beta2, w2, step, denom, eps, decay, rate;
  static constexpr trait states[] = {mean, second};
  T operator()(T x, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + (w2 * g) * g;
    return rate * (step * (m / (denom * sqrt(v) + eps)) + decay * x);
  }
};

template <class T> struct adafactor {
  T beta2, w2, least, step;
  static constexpr trait states[] = {second};
  T operator()(T, T g, T& v) const {
    v = beta2 * v + (w2 * g) * g;
    return step * (g / sqrt(maximum(v, least)));
  }
};

template <class T> struct mars {
  T ahead, shrink, w1, beta2, w2, step, denom, eps;
  static constexpr trait states[] = {mean, second, exact};
  T operator()(T, T g, T& m, T& v, T& p) const {
    const T c = shrink * (g + ahead * (g - p));
    p = g;
    m = m + w1 * (c - m);
    v = beta2 * v + (w2 * c) * c;
    return step * (m / (denom * sqrt(v) + eps));
  }
  measurement<T> measure(T, T g, T, T, T p) const { return {square(g + ahead * (g - p)), T(0)}; }
};

// o is x as it was at the start.
template <class T> struct prodigy {
  T first, d, w1, beta2, w2, beta3, k, step, eps;
  static constexpr trait states[] = {mean, second, slow, exact};
  T operator()(T x, T g, T& m, T& v, T& s, T& o) const {
    const T c = d * g;
    m = m + w1 * (c - m);
    v = beta2 * v + (w2 * c) * c;
    s = beta3 * s + k * g;
    o = select(first > 0, x, o);
    return step * (m / (sqrt(v) + eps));
  }
  measurement<T> measure(T x, T g, T, T, T s, T o) const {
    const T start = select(first > 0, x, o);
    return {g * (start - x), fabs(beta3 * s + k * g)};
  }
};

template <class T> struct dadapt_adam {
  T rate, w1, beta2, w2, beta3, k, eps;
  static constexpr trait states[] = {mean, second, slow};
  T operator()(T, T g, T& m, T& v, T& s) const {
    m = m + w1 * (rate * g - m);
    v = beta2 * v + (w2 * g) * g;
    s = beta3 * s + k * g;
    return m / (sqrt(v) + eps);
  }
  measurement<T> measure(T, T g, T, T v, T s) const {
    return {g * (s / (sqrt(v) + eps)), fabs(beta3 * s + k * g)};
  }
};

}  // namespace
}  // namespace schuss

// The list of rules: a rule that is not on it does not exist, one that is on it is tested, timed
// and documented.
// clang-format off
#define SCHUSS_RULES(rule)         \
  rule(sgd)                        \
  rule(momentum)                   \
  rule(nesterov)                   \
  rule(adagrad)                    \
  rule(rmsprop)                    \
  rule(rmsprop_momentum)           \
  rule(rmsprop_centered)           \
  rule(rmsprop_centered_momentum)  \
  rule(adadelta)                   \
  rule(ftrl)                       \
  rule(adam)                       \
  rule(general_adam)               \
  rule(decayed_adam)               \
  rule(amsgrad)                    \
  rule(adamax)                     \
  rule(adabelief)                  \
  rule(yogi)                       \
  rule(adopt)                      \
  rule(grams)                      \
  rule(ademamix)                   \
  rule(adan)                       \
  rule(sophia)                     \
  rule(signsgd)                    \
  rule(lion)                       \
  rule(rprop)                      \
  rule(rprop_backtracking)         \
  rule(delta_bar_delta)            \
  rule(delta_bar_delta_velocity)   \
  rule(delta_bar_delta_momentum)   \
  rule(asgd)                       \
  rule(schedule_free)              \
  rule(schedule_free_adam)         \
  rule(lars)                       \
  rule(lamb)                       \
  rule(adafactor)                  \
  rule(mars)                       \
  rule(prodigy)                    \
  rule(dadapt_adam)
// clang-format on
