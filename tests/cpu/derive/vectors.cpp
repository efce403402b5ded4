// exp_, log_, max_ and is_larger of the CPU's vectors, at one instruction set: FASTRNN_LEVEL.
#include <cmath>
#include <cstdio>

#define FASTRNN_ISA tested
#include "../../../csrc/cpu/vec_math.h"

namespace {

using namespace fastrnn::cpu::tested;

int failures = 0;

template <class V, class A, class F, class Truth>
void check(const char* what, A x, double tolerance, const F& f, const Truth& truth) {
  A lanes[V::kWidth];
  f(V(x)).store(lanes);
  const double expected = truth((double)x);
  for (A actual : lanes) {
    const double error = std::fabs(actual - expected);
    const bool right = std::isnan(expected) ? std::isnan(actual)
                       : std::isinf(expected)
                           ? actual == expected
                           : error <= tolerance * std::fmax(std::fabs(expected), 1e-30);
    if (right) continue;
    ++failures;
    std::printf("FAILED %s(%g) = %g, expected %g\n", what, (double)x, (double)actual, expected);
    return;
  }
}

template <class A, bool kCoarse>
void check_all(double tolerance, A least) {
  using V = Vec<A, kCoarse>;
  const A inf = A(INFINITY), nan = A(NAN);
  const auto exp = [](V x) { return exp_(x); };
  const auto log = [](V x) { return log_(x); };
  const double lowest = sizeof(A) == 4 ? -86.9 : -707.9, highest = sizeof(A) == 4 ? 88.7 : 709.7;
  for (int i = 0; i <= 4000; ++i) {
    const A x = A(lowest + (highest - lowest) * i / 4000);
    check<V>("exp", x, tolerance, exp, [](double v) { return std::exp(v); });
    // The product of many sizes; near 1 the error is of the size of the argument's rounding.
    const A y = A(std::exp(double(x) / 1.1));
    check<V>("log", y, tolerance, log, [](double v) { return std::log(v); });
    const A z = A(0.5 + i / 2000.0);
    check<V>("log", z, kCoarse ? 1e-4 : tolerance, log, [](double v) { return std::log(v); });
  }
  for (A x : {-inf, A(-1e30)}) check<V>("exp", x, 0, exp, [](double) { return 0.0; });
  for (A x : {inf, A(1e30)}) check<V>("exp", x, 0, exp, [](double) { return INFINITY; });
  check<V>("exp", nan, 0, exp, [](double) { return NAN; });
  check<V>("log", A(0), 0, log, [](double) { return -INFINITY; });
  check<V>("log", inf, 0, log, [](double) { return INFINITY; });
  for (A x : {A(-1), -inf, nan}) check<V>("log", x, 0, log, [](double) { return NAN; });
  check<V>("log", least, tolerance, log, [](double v) { return std::log(v); });
  for (A a : {A(1), A(-2), inf, -inf, nan}) {
    for (A b : {A(1), A(3), inf, -inf, nan}) {
      const double truth = a != a || b != b ? NAN : a > b ? a : b;
      check<V>("max", a, 0, [&](V x) { return max_(x, V(b)); }, [&](double) { return truth; });
      check<V>(
          "is_larger", a, 0, [&](V x) { return is_larger(x, V(b)); },
          [&](double) { return a > b ? 1.0 : 0.0; });
    }
  }
}

}  // namespace

int main() {
  check_all<float, false>(3e-7, 1e-40f);
  check_all<float, true>(1e-4, 1e-40f);
  check_all<double, false>(2e-15, 5e-320);
  std::printf("%d failures\n", failures);
  return failures > 0;
}
