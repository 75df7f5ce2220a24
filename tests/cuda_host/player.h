// What stands behind libcuda.cpp: memory, streams, events and graphs, and the order in which what is queued runs.
#pragma once

#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace host {

// Made beside the kernels, in the order of Rust's table.
extern const Kernel* const KERNELS[];
extern const u32 N_KERNELS;

}  // namespace host

namespace {

using host::fail;

enum Code : int { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500 };

// A launch as it was queued.
struct Launch {
    const host::Kernel* kernel;
    uint3 grid;
    std::vector<u64> args;
};

// Launches and, for each, the numbers of those that it waits for.
struct Graph {
    std::vector<Launch> nodes;
    std::vector<std::set<size_t>> waits_for;
    // The places of the streams that they were queued on, in the order in which streams were made.
    std::vector<size_t> streams;
};

struct Event {
    bool has_clock = false;
    // How often it was recorded, and how many of those have been reached.
    u64 recorded = 0, reached = 0;
    // Where it stands in a graph under way.
    std::shared_ptr<Graph> graph;
    std::set<size_t> place;
};

struct Operation {
    enum What { COPY, SET, LAUNCH, GRAPH, RECORD, WAIT } what;
    void* to = nullptr;
    const void* from = nullptr;
    size_t bytes = 0;
    Launch launch = {};
    std::shared_ptr<Graph> graph = {};
    Event* event = nullptr;
    u64 count = 0;
};

struct Stream {
    std::deque<Operation> queue;
    // The graph that it is being recorded into, and after which of its launches the next one comes.
    std::shared_ptr<Graph> graph;
    std::set<size_t> place;
    bool began = false;
    // The last thing queued is a launch.
    bool ends_in_launch = false;
};

struct Player {
    std::map<std::string, std::string> options;
    std::map<std::string, u64> calls, counts;
    int fault = SUCCESS;
    std::vector<Stream*> streams;
    std::set<Event*> events;
    std::map<u64, size_t> memory;
    std::map<void*, size_t> pinned;
    std::set<std::shared_ptr<Graph>*> graphs, executables;
    std::set<void*> modules;
    u64 in_use = 0;
    int retained = 0;

    Player() {
        const char* text = getenv("PLAYED_CUDA");
        std::string word;
        for (const char c : std::string(text ? text : "") + " ") {
            if (c != ' ') {
                word += c;
                continue;
            }
            const size_t sign = word.find('=');
            if (sign != std::string::npos) {
                options[word.substr(0, sign)] = word.substr(sign + 1);
            }
            word.clear();
        }
    }

    u64 number(const char* name, u64 otherwise) const {
        const auto found = options.find(name);
        return found == options.end() ? otherwise : strtoull(found->second.c_str(), nullptr, 10);
    }

    // What a call answers without being carried out.
    int begins(const char* call) {
        calls[call]++;
        const std::string& named = options["fail"];
        const size_t first = named.find(':'), second = named.find(':', first + 1);
        if (second != std::string::npos && named.substr(0, first) == call &&
            calls[call] == strtoull(named.c_str() + second + 1, nullptr, 10)) {
            fault = atoi(named.c_str() + first + 1);
            // Of a dead context nothing runs any more.
            for (Stream* stream : streams) {
                stream->queue.clear();
            }
        }
        return fault;
    }
};

Player& player() {
    static Player player;
    return player;
}

thread_local bool current = false;

// Begins every call but those that need no context.
#define CALL()                                       \
    if (const int fault = player().begins(__func__)) \
        return fault;                                \
    if (!current)                                    \
        fail("%s without a context", __func__)

void require(bool holds, const char* what) {
    if (!holds) {
        fail("libcuda: %s", what);
    }
}

void check_memory(u64 address, size_t bytes) {
    auto after = player().memory.upper_bound(address);
    require(after != player().memory.begin(), "memory of the card");
    const auto [start, size] = *--after;
    require(address >= start && address + bytes <= start + size, "memory of the card, within bounds");
}

void check_pinned(const void* start, size_t bytes) {
    for (const auto& [block, size] : player().pinned) {
        const char *from = static_cast<const char*>(block), *to = static_cast<const char*>(start);
        if (to >= from && to + bytes <= from + size) {
            return;
        }
    }
    fail("libcuda: memory of the host that is not pinned");
}

void run(const Launch& launch) {
    static const bool set_up = (host::set_up({}), true);
    (void)set_up;
    host::launch(*launch.kernel, launch.grid, launch.args.data());
}

void run(const Graph& graph) {
    const bool last = player().number("last", 0);
    std::vector<bool> done(graph.nodes.size());
    for (size_t n = 0; n < done.size(); n++) {
        size_t chosen = done.size();
        for (size_t i = 0; i < done.size(); i++) {
            const auto& waits_for = graph.waits_for[i];
            const auto is_done = [&](size_t node) { return done[node]; };
            const bool can_run = std::all_of(waits_for.begin(), waits_for.end(), is_done);
            const auto before = [&](size_t a, size_t b) { return last ? a > b : a < b; };
            if (!done[i] && can_run && (chosen == done.size() || before(graph.streams[i], graph.streams[chosen]))) {
                chosen = i;
            }
        }
        require(chosen < done.size(), "launches that wait for none later");
        run(graph.nodes[chosen]);
        done[chosen] = true;
    }
}

bool is_ready(const Stream& stream) {
    if (stream.queue.empty()) {
        return false;
    }
    const Operation& first = stream.queue.front();
    return first.what != Operation::WAIT || first.event->reached >= first.count;
}

void run_first(Stream& stream) {
    const Operation first = std::move(stream.queue.front());
    stream.queue.pop_front();
    switch (first.what) {
    case Operation::COPY:
        memcpy(first.to, first.from, first.bytes);
        return;
    case Operation::SET:
        memset(first.to, (int)first.count, first.bytes);
        return;
    case Operation::LAUNCH:
        run(first.launch);
        return;
    case Operation::GRAPH:
        run(*first.graph);
        return;
    case Operation::RECORD:
        first.event->reached = first.count;
        return;
    case Operation::WAIT:
        return;
    }
}

// Runs what can run until `is_over`, and nothing more.
template <class Over>
void run_until(Over is_over) {
    auto& streams = player().streams;
    while (!is_over()) {
        const bool last = player().number("last", 0);
        auto ready = std::find_if(streams.begin(), streams.end(), [](Stream* stream) { return is_ready(*stream); });
        if (last) {
            const auto can_go_on = [](Stream* stream) { return is_ready(*stream); };
            auto found = std::find_if(streams.rbegin(), streams.rend(), can_go_on);
            ready = found == streams.rend() ? streams.end() : found.base() - 1;
        }
        require(ready != streams.end(), "what is waited for comes some day");
        run_first(**ready);
    }
}

void run_all() {
    run_until([] {
        const auto& streams = player().streams;
        return std::all_of(streams.begin(), streams.end(), [](Stream* stream) { return stream->queue.empty(); });
    });
}

void queue(Stream* stream, Operation operation) {
    require(!stream->graph, "copies are not recorded");
    stream->ends_in_launch = operation.what == Operation::LAUNCH;
    stream->queue.push_back(std::move(operation));
}

}  // namespace
