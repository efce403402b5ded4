// Stacks whose weights are packed once (cpu/frozen.h), called with tensors. Nothing here knows
// Python: the module fastrnn._C binds these, and examples/cpp_streaming registers them with torch.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace fastrnn {

// The weights of a stack in packed form: for each layer and direction w_ih, w_hh, b_ih, b_hh, w_hr
// and the scales of w_ih and w_hh. `type` is a FrozenType; sizes are layers, directions, I, H, R.
at::Tensor pack_frozen(int64_t cell, int64_t type, const std::vector<int64_t>& sizes,
                       const std::vector<std::optional<at::Tensor>>& weights);

// As a layer's forward: x (T, B, I) or (B, T, I) with batch_first, (T, I), or (N, I) with
// batch_sizes. Returns the output and the final states.
std::tuple<at::Tensor, std::vector<at::Tensor>> frozen_forward(
    const at::Tensor& packed, const at::Tensor& x, const std::optional<std::vector<at::Tensor>>& hx,
    const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& batch_sizes,
    bool batch_first);

// The states move on in place over x (T, B, I), (B, T, I) with batch_first, or one step (B, I) or,
// unbatched, (I). Returns the output, which is `out` where that is given.
at::Tensor frozen_advance(const at::Tensor& packed, const at::Tensor& x,
                          const std::vector<at::Tensor>& states,
                          const std::optional<at::Tensor>& out, bool batch_first);

}  // namespace fastrnn
