// Compiled before the kernels of a user's cell: the first error is what is wrong with its header,
// made a sentence by fastrnn/_kernels/cell_errors.py. A message begins with the member it is about.
#include "../cells/derive.h"
#include FASTRNN_OWN_HEADER

using OwnCell = ::FASTRNN_OWN_CELL;

namespace fastrnn {
namespace {

constexpr int kMostOwnGates = 4;  // kMaxVecs of cpu/product.h

template <class List, class Element>
constexpr bool is_list_of =
    std::is_array_v<List> && std::is_same_v<std::remove_cv_t<std::remove_extent_t<List>>, Element>;

template <class Cell>
constexpr bool check() {
  static_assert(
      requires { Cell::kGates; },
      "kGates is missing, which names the gates: static constexpr const char* kGates[]");
  static_assert(is_list_of<decltype(Cell::kGates), const char*>,
                "kGates must be a static constexpr const char* kGates[]");
  static_assert(std::extent_v<decltype(Cell::kGates)> <= kMostOwnGates,
                "kGates has more than 4 names, which is what the kernels take");
  static_assert(
      requires { Cell::kStates; },
      "kStates is missing, which names the states and their initial values: static "
      "constexpr fastrnn::State kStates[]");
  static_assert(is_list_of<decltype(Cell::kStates), State>,
                "kStates must be a static constexpr fastrnn::State kStates[]");
  static_assert(std::extent_v<decltype(Cell::kStates)> <= kMostStates && kMostStates == 4,
                "kStates has more than 4 states, which is what the kernels take");
  static_assert(Cell::kStates[0].initial == 0, "kStates must begin with h, which starts at 0");
  if constexpr (requires { Cell::kParams; }) {
    static_assert(is_list_of<decltype(Cell::kParams), const char*>,
                  "kParams must be a static constexpr const char* kParams[]");
    static_assert(std::extent_v<decltype(Cell::kParams)> <= kMostParams && kMostParams == 8,
                  "kParams has more than 8 names, which is what the kernels take");
  }
  static_assert(
      !requires { Cell::kScalars; },
      "kScalars is for cells of fastrnn's own: write a constant A(0.5), or a parameter");
  static_assert(
      !requires { Cell::kNoise; },
      "kNoise is not supported: a forward draws nothing, Layer(zoneout=...) does");
  static_assert(!requires { Cell::kRecurrent; }, "kRecurrent is for cells of fastrnn's own");
  static_assert(!requires { Cell::kNorms; }, "kNorms is for cells of fastrnn's own");
  static_assert(
      requires(const In<Symbol>& in, Symbol* next) { Cell::forward(in, next); },
      "forward must be: template <class A> static FASTRNN_CELL void forward(const "
      "fastrnn::In<A>& in, A* next)");
  return true;
}

static_assert(check<OwnCell>());
static_assert(trace<OwnCell>().count > 0);

}  // namespace
}  // namespace fastrnn
