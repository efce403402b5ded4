// FastGRNN: one product of the input and one of h serve both the gate and the candidate (Kusupati
// et al. 2018, "FastGRNN: A Fast, Accurate, Stable and Tiny Kilobyte Sized Gated RNN").
//   a = W x + U h,  z = sigmoid(a + b_z),  c = tanh(a + b_c),
//   h' = (sigmoid(zeta) (1 - z) + sigmoid(nu)) c + z h
// In the paper zeta and nu are two numbers; here every unit has its own. The layer's own biases
// would add to both b: construct it with bias=False.
struct FastGrnn {
  static constexpr const char* kGates[] = {"a"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}};
  static constexpr const char* kParams[] = {"bias_z", "bias_c", "zeta", "nu"};

  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    const A a = in.x[0] + in.h[0];
    const A z = sigmoid_(a + in.params[0]), candidate = tanh_(a + in.params[1]);
    const A scale = sigmoid_(in.params[2]) * (A(1) - z) + sigmoid_(in.params[3]);
    next[0] = scale * candidate + z * in.prev[0];
  }
};
