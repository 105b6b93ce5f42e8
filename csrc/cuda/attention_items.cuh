// Work of decode attention: which block takes which split of which sequence.
//
// An item is a split of 256 positions of one KV head. Splits of all sequences in a row are slots;
// item = slot * kv_heads + kv_head, so that neighbours read neighbouring bytes of the same pages.
// Every warp finds items by itself: 64 lengths are two a lane, their splits summed by shuffles.
#pragma once
#include "../common/device.cuh"
#include "../common/step_ops.h"

namespace servewright::cuda {

using namespace servewright::device;

// The same in all threads of a block.
struct AttentionItem {
  int token;
  int kv_head;
  int split;
  int splits;      // of this sequence
  int first_slot;  // splits of the sequences before it
  int length;
};

// An empty sequence has one slot, which writes zeros. Lane i keeps sequences 2i and 2i + 1.
struct Slots {
  int lengths[2];
  int end;  // slots up to and with this lane's
  int count;

  SW_DEVICE static int splits(int length) {
    return maximum((length + SPLIT_POSITIONS - 1) / SPLIT_POSITIONS, 1);
  }

  SW_DEVICE Slots(const AttentionArgs& args, int tokens, int lane) {
    end = 0;
    SW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int token = 2 * lane + i;
      lengths[i] = token < tokens ? args.lengths[token] : -1;
      end += lengths[i] < 0 ? 0 : splits(lengths[i]);
    }
    SW_UNROLL
    for (int step = 1; step < 32; step *= 2) {
      const int before = shuffle(end, lane - step);
      if (lane >= step) end += before;
    }
    count = shuffle(end, 31);
  }

  SW_DEVICE AttentionItem item(int number, int kv_heads) const {
    const int slot = number / kv_heads;
    const int owner = popcount(~vote_ballot(end > slot));  // ends ascend
    const int length0 = shuffle(lengths[0], owner), length1 = shuffle(lengths[1], owner);
    const int splits0 = splits(length0), splits1 = length1 < 0 ? 0 : splits(length1);
    const int first = shuffle(end, owner) - splits0 - splits1;
    const bool is_second = slot >= first + splits0;
    AttentionItem item;
    item.token = 2 * owner + is_second;
    item.kv_head = number % kv_heads;
    item.splits = is_second ? splits1 : splits0;
    item.first_slot = is_second ? first + splits0 : first;
    item.split = slot - item.first_slot;
    item.length = is_second ? length1 : length0;
    return item;
  }
};

}  // namespace servewright::cuda
