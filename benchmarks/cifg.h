// CIFGLSTM (csrc/cells/cifg.h) as a user would write it.
struct Cifg {
  static constexpr const char* kGates[] = {"i", "g", "o"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}, {"c", 0}};

  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    const A i = sigmoid_(in.x[0] + in.h[0]), g = tanh_(in.x[1] + in.h[1]);
    next[1] = (A(1) - i) * in.prev[1] + i * g;
    next[0] = sigmoid_(in.x[2] + in.h[2]) * tanh_(next[1]);
  }
};
