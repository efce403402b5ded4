// How the driver divides a call among threads.
#pragma once

struct Division {
  int teams, batch_slices, unit_slices;  // as in csrc/cpu/plan.h

  int threads() const { return teams * batch_slices * unit_slices; }
};

// Taken by every plan for which the sizes allow it, the others get one thread; teams == 0 leaves
// the choice to plan.cpp.
extern Division forced;
extern int forced_uses;
