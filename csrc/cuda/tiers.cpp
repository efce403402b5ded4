#include "tiers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../cells/user_cells.h"

namespace fastrnn::cuda {

namespace {

struct Regime {
  const char* name;
  Tier tier;
  int min_capability;
  int min_bytes, max_bytes;  // of the storage type
  int64_t max_hidden;        // reckoned from the sizes of registers and shared memory
};

constexpr Regime kRegimes[] = {
    {"small, 16-bit: one block a batch tile", Tier::kCta, 75, 2, 2, 96},
    {"small, 32-bit: one block a batch tile", Tier::kCta, 75, 4, 4, 64},
    {"medium: one cluster a batch tile", Tier::kCluster, 90, 2, 4, 1024},
    {"large: a cooperative grid", Tier::kGrid, 80, 2, 4, 4096},
};

// The numbers below were measured with bfloat16 LSTMs on an H200 (benchmarks/results/nvidia-h200).
//
// Clusters can use this share of the SMs at the same time: there was room for seven clusters of
// sixteen blocks, fifteen of eight and thirty of four.
constexpr double kClusterShare = 0.91;
// Rows of a batch tile, and the most units of a member. Where there is no room for all teams at the
// same time, a form whose steps take longer, but which takes fewer turns, may be quicker.
struct ClusterForm {
  int rows, units;
};
constexpr ClusterForm kClusterForms[] = {{8, 32}, {8, 64}, {32, 32}};
// A step of eight rows and at most 32 units costs 1, and every turn costs a step. Clusters were
// ahead of a launch a step up to this cost, and behind at 8.
constexpr double kMostClusterCost = 3.2;
// kGrid was ahead up to this B * H, and in backward up to this B * H * members, which it exchanges.
constexpr int64_t kMostGridForward = 65536, kMostGridBackward = 524288;

// Fewer rows a tile are quicker, as each warp has less to do in a step, but more teams leave less
// room for the layers of a stack at the same time (plan_wavefront).
constexpr int kLayersBeside = 4;

// Weights on their way to the chip take as long as a few launches: single steps took 13 to 35 us on
// an H100, and 11 to 27 with a launch (benchmarks/NOTES.md). Two and three steps were not measured.
constexpr int64_t kFewestSteps = 4;

// Of the exchange of kGrid's backward, which grows with B * H * members.
constexpr int64_t kMostExchange = int64_t{256} << 20;
constexpr int kUnits = 32;  // of a member of kGrid, where a smaller team would need more

// What a chunk of a wavefront costs beside its steps, in steps: the launches, the weights on their
// way to the chip, in training the products that give the weights' gradients. In a CUDA graph an
// H100 took the least time with as many chunks as these make. Without a graph the host is slower
// than that, and kChunkSteps is reckoned.
constexpr int64_t kChunkSteps = 64, kGraphForwardSteps = 7, kGraphTrainingSteps = 24;
// Blocks of resident kernels on an SM at the same time: registers and shared memory were dealt out
// as if there were one. Not asked of the device.
constexpr int kBlocksPerSm = 1;

int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
int units_of(int64_t hidden, int64_t members) {
  return static_cast<int>(tiles_of(tiles_of(hidden, members), 8) * 8);
}

struct Planner {
  const PlanQuery& q;
  const Device& device;
  const TeamWish& wish;
  bool tensor_cores;

  bool fits(const Team& team) const {
    const CellInfo& cell = kCells[q.cell];
    return team.units <= max_units(team.tier, team.rows) &&
           int64_t{team.members - 1} * team.units < q.hidden &&
           shared_bytes({cell.gates, cell.states, cell.params}, q.dtype, team, q.hidden,
                        q.backward) <= device.shared_per_block &&
           exchange_bytes(q.dtype, team, q.directions, q.backward) <= kMostExchange;
  }

  Team team(Tier tier, int rows, int units) const {
    const int64_t teams = tiles_of(q.batch, rows);
    return {tier,  tensor_cores,
            rows,  static_cast<int>(tiles_of(q.hidden, units)),
            units, static_cast<int>(teams),
            1};
  }

  // Of a tile of eight rows, those that are used: fewer, but not fewer than `least`, while the GPU
  // has room for four layers so.
  int narrow_rows(int64_t room, int least) const {
    int rows = 8;
    while (rows > least && kLayersBeside * teams_of(rows / 2) <= room) rows /= 2;
    return rows;
  }
  int64_t teams_of(int rows) const { return q.directions * tiles_of(q.batch, rows); }

  // A thread that serves several elements takes them one after another.
  std::optional<Team> cta() const {
    const int units = units_of(q.hidden, 1);
    int rows = wish.rows ? wish.rows : narrow_rows(device.sms, 2);
    while (!wish.rows && rows > 2 && rows * units > kResidentThreads &&
           teams_of(rows / 2) <= device.sms)
      rows /= 2;
    const Team team = this->team(Tier::kCta, rows, units);
    if (rows > 8 || !fits(team)) return {};
    return team;
  }

  // The smallest cluster whose members have `most` units at most, or else the largest.
  std::optional<Team> cluster(int rows, int most) const {
    for (int members = 2; members <= device.max_cluster; members *= 2) {
      const int units = wish.units ? wish.units : units_of(q.hidden, members);
      const int served = wish.rows  ? wish.rows
                         : rows > 8 ? rows
                                    : narrow_rows(clusters(members), 4);
      const Team team = this->team(Tier::kCluster, served, units);
      const bool few = units <= most || 2 * members > device.max_cluster;
      if (few && team.members > 1 && team.members <= device.max_cluster && fits(team)) return team;
    }
    return {};
  }

  std::optional<Team> best_cluster() const {
    std::optional<Team> best;
    for (const ClusterForm& form : kClusterForms) {
      if ((wish.rows && tile_rows(wish.rows) != form.rows) || (form.rows > 8 && !tensor_cores))
        continue;
      const std::optional<Team> team = cluster(form.rows, form.units);
      if (!team) continue;
      if (!best || cluster_cost(*team) < cluster_cost(*best)) best = team;
    }
    return best;
  }

  // Clusters that run at the same time.
  int64_t clusters(int64_t members) const {
    return std::max<int64_t>(static_cast<int64_t>(device.sms * kClusterShare / members), 1);
  }

  double cluster_cost(const Team& team) const {
    const int64_t turns = tiles_of(q.directions * team.teams, clusters(team.members));
    return (team.rows > 8 ? 2.9 : team.units > 32 ? 1.6 : 1.0) * static_cast<double>(turns);
  }

  bool is_ahead(const Team& team) const {
    if (q.steps < kFewestSteps) return false;
    if (team.tier == Tier::kCluster) return cluster_cost(team) <= kMostClusterCost;
    if (team.tier != Tier::kGrid) return true;
    return q.backward ? q.batch * q.hidden * team.members <= kMostGridBackward
                      : q.batch * q.hidden <= kMostGridForward;
  }

  // The smallest team whose members have few units and that fits; as many teams as there is room
  // for, and the tiles dealt out to them.
  std::optional<Team> grid(int rows) const {
    const int64_t most = device.sms / q.directions;
    const int largest = wish.units ? wish.units : std::min(kUnits, max_units(Tier::kGrid, rows));
    for (int units = largest; units >= (wish.units ? wish.units : 8); units -= 8) {
      Team team = this->team(Tier::kGrid, rows, units);
      if (team.members > most) return {};
      const int64_t tiles = team.teams, room = most / team.members;
      team.tiles = static_cast<int>(tiles_of(tiles, std::min(tiles, room)));
      team.teams = static_cast<int>(tiles_of(tiles, team.tiles));
      if (fits(team)) return team;
    }
    return {};
  }

  // Tiles of eight rows while all of them find room at the same time, since a smaller tile is
  // quicker; then of 32, where the kernel exists and fits.
  std::optional<Team> best_grid() const {
    if (wish.rows) return grid(wish.rows);
    const std::optional<Team> narrow = grid(8);
    if (!tensor_cores || (narrow && narrow->tiles == 1)) return narrow;
    const std::optional<Team> wide = grid(32);
    return wide ? wide : narrow;
  }

  std::optional<Team> best(Tier tier) const {
    if (tier == Tier::kCta) return cta();
    return tier == Tier::kCluster ? best_cluster() : best_grid();
  }
};

}  // namespace

std::vector<Candidate> resident_candidates(const PlanQuery& q, const Device& device,
                                           const TeamWish& wish) {
  std::vector<Candidate> found;
  const bool half_width = bytes(q.dtype) == 2;
  const bool tf32 = q.dtype == Dtype::kFloat32 && q.tf32 && device.capability >= 80;
  if (q.recurrent != q.hidden || q.dtype == Dtype::kFloat64) return found;
  if (q.cell >= kFirstUserCell) return found;       // whose library has step kernels alone
  if (!kCells[q.cell].recurrent) return found;      // without weights to keep
  if (kCells[q.cell].statistics > 0) return found;  // a norm is over the units of all members
  if (q.zoned) return found;  // what it draws takes registers that the weights have
  // Turing's tensor cores know fp16 alone.
  if (q.dtype == Dtype::kBfloat16 && device.capability < 80) return found;
  const Planner planner{q, device, wish, half_width || tf32};
  for (const Regime& regime : kRegimes) {
    if (device.capability < regime.min_capability || bytes(q.dtype) < regime.min_bytes ||
        bytes(q.dtype) > regime.max_bytes || q.hidden > regime.max_hidden)
      continue;
    if (const std::optional<Team> team = planner.best(regime.tier))
      found.push_back({regime.name, *team, planner.is_ahead(*team)});
  }
  return found;
}

Wavefront plan_wavefront(const std::vector<Team>& passes, const Device& device, int64_t directions,
                         int64_t layers, int64_t steps, bool in_graph,
                         std::optional<int64_t> wished) {
  const auto none = [](const char* why) { return Wavefront{1, 0, why}; };
  if (layers < 2) return none("there is one layer");
  if (directions != 1)
    return none("a layer needs the whole of the layer below, in both directions");
  if (wished && *wished < 2) return none("it is switched off");
  if (steps < 2) return none("the sequence is too short for chunks");
  int64_t lanes = layers;
  for (const Team& team : passes) {
    if (team.tier == Tier::kStep) return none("it needs a launch for the sequence in every pass");
    const int64_t blocks = int64_t{team.teams} * team.members;
    lanes = std::min(lanes, kBlocksPerSm * device.sms / blocks);
  }
  if (lanes < 2) return none("two layers do not find room at the same time");
  if (wished) return {static_cast<int>(lanes), std::min(*wished, steps), nullptr};

  // So many layers take chunks + lanes - 1 times the length of a chunk and its cost: the root makes
  // that least.
  const auto least = [&](int64_t cost) {
    return static_cast<int64_t>(std::sqrt(static_cast<double>((lanes - 1) * steps) / cost));
  };
  int64_t chunks = 0;
  if (in_graph) {
    chunks = std::min(least(passes.size() > 1 ? kGraphTrainingSteps : kGraphForwardSteps),
                      steps / kFewestSteps);  // shorter ones would not be resident
  } else {
    const int64_t most = steps / kChunkSteps;  // chunks of all lanes that the host can keep up with
    lanes = std::min(lanes, most / 2);
    if (lanes >= 2) chunks = std::min(least(kChunkSteps), most / lanes);
  }
  if (chunks < 2) return none("the sequence is too short for chunks");
  return {static_cast<int>(lanes), chunks, nullptr};
}

}  // namespace fastrnn::cuda
