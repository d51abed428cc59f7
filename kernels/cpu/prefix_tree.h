// SPDX-License-Identifier: Apache-2.0
// All prefixes that a beam search has seen, as a tree. The same labels are the same node, however often the prefix left
// the beam and came back.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

namespace jax_ctc {

class PrefixTree {
 public:
  struct Node {
    int32_t parent, label;  // -1 at the root
    int32_t count;          // labels
    int32_t slot;           // in the beam, or -1
  };

  // Leaves the root, which is node 0.
  void clear() {
    nodes_.assign(1, {-1, -1, 0, -1});
    table_.assign(1024, -1);
  }
  Node& operator[](int32_t node) { return nodes_[node]; }

  int32_t child(int32_t parent, int32_t label) {
    size_t i = place(parent, label);
    if (table_[i] >= 0) return table_[i];
    if (nodes_.size() >= INT32_MAX) throw std::bad_alloc();
    const int32_t node = nodes_.size();
    nodes_.push_back({parent, label, nodes_[parent].count + 1, -1});
    table_[i] = node;
    if (2 * nodes_.size() > table_.size()) grow();
    return node;
  }

  size_t bytes() const { return nodes_.capacity() * sizeof(Node) + table_.capacity() * sizeof(int32_t); }

 private:
  // Where the node stands in the table, or the free entry where it belongs.
  size_t place(int32_t parent, int32_t label) const {
    const uint64_t key = uint64_t(uint32_t(parent)) << 32 | uint32_t(label);
    const size_t mask = table_.size() - 1;
    size_t i = (key * 0x9e3779b97f4a7c15u >> 32) & mask;
    while (table_[i] >= 0 && (nodes_[table_[i]].parent != parent || nodes_[table_[i]].label != label))
      i = (i + 1) & mask;
    return i;
  }
  void grow() {
    table_.assign(2 * table_.size(), -1);
    for (size_t n = 1; n < nodes_.size(); ++n) table_[place(nodes_[n].parent, nodes_[n].label)] = n;
  }

  std::vector<Node> nodes_;
  std::vector<int32_t> table_;  // of nodes, -1 where free; a power of two, at most half full
};

}  // namespace jax_ctc
