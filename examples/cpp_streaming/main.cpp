// stream MODEL.pt2 AUDIO.wav: the probability of speech in every 32 ms of a WAV file, and how fast.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// What package.py exported: samples, the samples before them, h and c.
constexpr int64_t kRate = 16000, kChunk = 512, kContext = 64, kHidden = 128;

template <class T>
T read(std::istream& file) {
  T value{};
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

// The samples of a WAV file in 16-bit PCM, mono, 16 kHz, as numbers within -1 .. 1.
std::vector<float> read_wav(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  char tag[5] = {};
  file.read(tag, 4);
  if (std::strcmp(tag, "RIFF") != 0) throw std::runtime_error(path + " is no WAV file");
  file.ignore(8);  // its size, and "WAVE"
  bool fits = false;
  while (file.read(tag, 4)) {
    const uint32_t size = read<uint32_t>(file);
    if (std::strcmp(tag, "fmt ") == 0) {
      const auto kind = read<uint16_t>(file), channels = read<uint16_t>(file);
      const auto rate = read<uint32_t>(file);
      file.ignore(6);
      fits = kind == 1 && channels == 1 && rate == kRate && read<uint16_t>(file) == 16;
      file.ignore(size - 16);
    } else if (std::strcmp(tag, "data") == 0) {
      if (!fits) throw std::runtime_error(path + ": expected 16-bit PCM, mono, 16000 Hz");
      std::vector<int16_t> values(size / 2);
      file.read(reinterpret_cast<char*>(values.data()), std::streamsize(values.size() * 2));
      values.resize(size_t(file.gcount()) / 2);
      std::vector<float> samples(values.size());
      std::transform(values.begin(), values.end(), samples.begin(),
                     [](int16_t value) { return float(value) / 32768; });
      return samples;
    } else {
      file.ignore(size + size % 2);
    }
  }
  throw std::runtime_error(path + " has no samples");
}

void run(const std::string& model, const std::string& audio) {
  std::vector<float> samples = read_wav(audio);
  samples.resize(samples.size() / kChunk * kChunk);
  if (samples.empty()) throw std::runtime_error(audio + " is shorter than 32 ms");

  const c10::InferenceMode guard;
  at::set_num_threads(1);  // a chunk is too little work for more
  torch::inductor::AOTIModelPackageLoader loader(model);
  const auto initial = [] {
    return std::vector<at::Tensor>{at::zeros({1, kContext}), at::zeros({1, 1, kHidden}),
                                   at::zeros({1, 1, kHidden})};
  };
  std::vector<at::Tensor> state = initial();
  const auto step = [&](float* chunk) {
    std::vector<at::Tensor> inputs{at::from_blob(chunk, {1, kChunk})};
    inputs.insert(inputs.end(), state.begin(), state.end());
    std::vector<at::Tensor> outputs = loader.run(inputs);
    state.assign(outputs.begin() + 1, outputs.end());
    return outputs[0].item<float>();
  };
  step(samples.data());  // the first call of anything is slower
  state = initial();

  std::vector<double> seconds;
  for (size_t at = 0; at < samples.size(); at += kChunk) {
    const auto start = std::chrono::steady_clock::now();
    const float probability = step(samples.data() + at);
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    std::printf("%8.3f s  %.6f\n", double(at) / kRate, probability);
  }
  double sum = 0;
  for (const double each : seconds) sum += each;
  std::sort(seconds.begin(), seconds.end());
  std::printf("%zu chunks of 32 ms: median %.1f us, p99 %.1f us, real-time factor %.5f\n",
              seconds.size(), seconds[seconds.size() / 2] * 1e6,
              seconds[seconds.size() * 99 / 100] * 1e6, sum / (double(samples.size()) / kRate));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL.pt2 AUDIO.wav\n", argv[0]);
    return 2;
  }
  try {
    run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
