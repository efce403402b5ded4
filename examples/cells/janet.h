// JANET, an LSTM that has kept its forget gate alone, with the paper's beta of 1 (van der
// Westhuizen and Lasenby 2018, "The unreasonable effectiveness of the forget gate").
//   s = W_f x + b_f + U_f h,  h' = sigmoid(s) h + (1 - sigmoid(s - 1)) tanh(W_c x + b_c + U_c h)
struct Janet {
  static constexpr const char* kGates[] = {"f", "c"};
  static constexpr fastrnn::State kStates[] = {{"h", 0}};

  template <class A>
  static FASTRNN_CELL void forward(const fastrnn::In<A>& in, A* next) {
    const A s = in.x[0] + in.h[0], candidate = tanh_(in.x[1] + in.h[1]);
    next[0] = sigmoid_(s) * in.prev[0] + (A(1) - sigmoid_(s - A(1))) * candidate;
  }
};
