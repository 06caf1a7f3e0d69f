// Every rule, simplest first: what happens to one element.
//
// A rule is a struct of scalars, all of type T. Its call operator takes the parameter x, the
// gradient g and one reference for each state array, updates the state and returns the update u;
// the block loop then stores x = keep*x - u. It knows no loop, pointer, thread, instruction set,
// decay or storage type. Letters and order of operations are those of python/schuss/reference.py,
// the specification, and nothing is contracted, so both end on the same bits. One select a
// statement: a nested ?: stays scalar on SSE2.
#pragma once

#include <cmath>

namespace schuss {
namespace {

// The larger one; a NaN on either side comes through, as std::max and maxps do not promise.
template <class T> T maximum(T a, T b) {
  const T larger = a > b ? a : b;
  return a != a ? a : larger;
}

template <class T> struct sgd {
  T lr;
  T operator()(T, T g) const { return lr * g; }
};

template <class T> struct momentum {
  T mu, w, s;
  T operator()(T, T g, T& b) const {
    b = mu * b + w * g;
    return s * b;
  }
};

template <class T> struct nesterov {
  T mu, w, a, s;
  T operator()(T, T g, T& b) const {
    b = mu * b + w * g;
    return s * (a * g + mu * b);
  }
};

template <class T> struct adagrad {
  T lr, eps;
  T operator()(T, T g, T& s) const {
    s = s + g * g;
    return lr * g / (std::sqrt(s) + eps);
  }
};

template <class T> struct rmsprop {
  T alpha, w, lr, eps;
  T operator()(T, T g, T& v) const {
    v = alpha * v + w * (g * g);
    return lr * g / (std::sqrt(v) + eps);
  }
};

template <class T> struct rmsprop_momentum {
  T alpha, w, lr, eps, mu;
  T operator()(T, T g, T& v, T& b) const {
    v = alpha * v + w * (g * g);
    b = mu * b + g / (std::sqrt(v) + eps);
    return lr * b;
  }
};

template <class T> struct rmsprop_centered {
  T alpha, w, lr, eps;
  T operator()(T, T g, T& v, T& a) const {
    v = alpha * v + w * (g * g);
    a = a + w * (g - a);
    return lr * g / (std::sqrt(maximum(v - a * a, T(0))) + eps);
  }
};

template <class T> struct rmsprop_centered_momentum {
  T alpha, w, lr, eps, mu;
  T operator()(T, T g, T& v, T& a, T& b) const {
    v = alpha * v + w * (g * g);
    a = a + w * (g - a);
    b = mu * b + g / (std::sqrt(maximum(v - a * a, T(0))) + eps);
    return lr * b;
  }
};

template <class T> struct adam {
  T w1, beta2, w2, step, denom, eps;
  T operator()(T, T g, T& m, T& v) const {
    m = m + w1 * (g - m);
    v = beta2 * v + w2 * (g * g);
    return step * (m / (denom * std::sqrt(v) + eps));
  }
};

template <class T> struct amsgrad {
  T w1, beta2, w2, step, denom, eps;
  T operator()(T, T g, T& m, T& v, T& q) const {
    m = m + w1 * (g - m);
    v = beta2 * v + w2 * (g * g);
    q = maximum(q, v);
    return step * (m / (denom * std::sqrt(q) + eps));
  }
};

}  // namespace
}  // namespace schuss

// The list of rules: a rule that is not on it does not exist, one that is on it is tested, timed
// and documented.
#define SCHUSS_RULES(rule)                                                                   \
  rule(sgd) rule(momentum) rule(nesterov) rule(adagrad) rule(rmsprop) rule(rmsprop_momentum) \
      rule(rmsprop_centered) rule(rmsprop_centered_momentum) rule(adam) rule(amsgrad)
