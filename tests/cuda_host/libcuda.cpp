// Plays the driver, libcuda.so.1, for src/backend/cuda/driver.rs: what is queued runs when the host waits for it, in an
// order that is as contrary as the streams, events and graphs allow; its kernels are those of kernels/*.cu compiled as
// C++. So a copy that nobody waited for, a stream that does not wait for another, or host memory that is used again too
// early gives wrong results here, each time. A call that a real driver would refuse ends the process.
//
// PLAYED_CUDA has what it plays: `driver=12090 cards=1 arch=90 memory=BYTES last=1 fail=CALL:CODE:N log=FILE`. last: of
// two streams that can go on the one that was made later does. fail: call number N of CALL and all later calls of
// anything answer CODE. log: where counts go when the context is released.

#include "player.h"

extern "C" {

int cuGetErrorString(int code, const char** text) {
    static const std::map<int, const char*> TEXTS = {
        {OUT_OF_MEMORY, "out of memory"},
        {NO_DEVICE, "no CUDA-capable device is detected"},
        {700, "an illegal memory access was encountered"},
    };
    const auto found = TEXTS.find(code);
    *text = found == TEXTS.end() ? nullptr : found->second;
    return found == TEXTS.end() ? INVALID_VALUE : SUCCESS;
}

int cuDriverGetVersion(int* version) {
    *version = (int)player().number("driver", 12090);
    return SUCCESS;
}

int cuInit(unsigned flags) {
    require(flags == 0, "flags of cuInit");
    const int fault = player().begins(__func__);
    return fault ? fault : player().number("cards", 1) == 0 ? NO_DEVICE : SUCCESS;
}

// NVRTC asks for it where there is a driver, and does without.
int cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return NOT_FOUND;
}

int cuDeviceGetCount(int* n) {
    *n = (int)player().number("cards", 1);
    return player().begins(__func__);
}

int cuDeviceGet(int* device, int ordinal) {
    require(ordinal >= 0 && ordinal < (int)player().number("cards", 1), "a card's number");
    *device = ordinal;
    return player().begins(__func__);
}

int cuDeviceGetName(char* name, int length, int) {
    snprintf(name, (size_t)length, "Played Card");
    return player().begins(__func__);
}

int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = player().number("memory", 1 << 30);
    return player().begins(__func__);
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    const int arch = (int)player().number("arch", 90);
    require(attribute == 75 || attribute == 76 || attribute == 16, "a known attribute");
    *value = attribute == 75 ? arch / 10 : attribute == 76 ? arch % 10 : 132;
    return player().begins(__func__);
}

int cuDevicePrimaryCtxRetain(void** context, int) {
    player().retained++;
    *context = &player();
    return player().begins(__func__);
}

int cuDevicePrimaryCtxRelease_v2(int) {
    Player& p = player();
    require(--p.retained >= 0, "a context is released as often as it is retained");
    if (p.retained == 0 && !p.options["log"].empty()) {
        FILE* log = fopen(p.options["log"].c_str(), "w");
        require(log, "a log that can be written");
        const size_t alive = p.streams.size() + p.events.size() + p.memory.size() + p.pinned.size() + p.graphs.size() +
                             p.executables.size() + p.modules.size();
        fprintf(log, "alive %zu\n", alive);
        for (const auto& [name, count] : p.counts) {
            fprintf(log, "%s %llu\n", name.c_str(), count);
        }
        fclose(log);
    }
    return SUCCESS;
}

int cuCtxSetCurrent(void* context) {
    require(context == &player() && player().retained > 0, "a context that is retained");
    current = true;
    return player().begins(__func__);
}

int cuCtxSynchronize() {
    CALL();
    run_all();
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t* free, size_t* total) {
    CALL();
    *total = player().number("memory", 1 << 30);
    *free = *total - player().in_use;
    return SUCCESS;
}

int cuStreamCreate(Stream** stream, unsigned flags) {
    CALL();
    require(flags == 1, "a stream that does not wait for the default one");
    *stream = new Stream;
    player().streams.push_back(*stream);
    return SUCCESS;
}

int cuStreamSynchronize(Stream* stream) {
    CALL();
    run_until([&] { return stream->queue.empty(); });
    return SUCCESS;
}

int cuStreamDestroy_v2(Stream* stream) {
    auto& streams = player().streams;
    const auto found = std::find(streams.begin(), streams.end(), stream);
    require(found != streams.end(), "a stream that is alive");
    streams.erase(found);
    delete stream;
    return SUCCESS;
}

int cuStreamWaitEvent(Stream* stream, Event* event, unsigned flags) {
    CALL();
    require(flags == 0 && player().events.count(event), "an event that is alive");
    stream->ends_in_launch = false;
    if (event->graph) {
        require(!stream->graph || stream->graph == event->graph, "streams of one graph");
        if (!stream->graph) {
            stream->graph = event->graph;
            stream->place.clear();
        }
        stream->place.insert(event->place.begin(), event->place.end());
        return SUCCESS;
    }
    Operation wait{Operation::WAIT};
    wait.event = event;
    wait.count = event->recorded;
    queue(stream, wait);
    return SUCCESS;
}

int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    CALL();
    require(mode == 1 && !stream->graph, "a stream that is not recorded yet, by this thread alone");
    stream->graph = std::make_shared<Graph>();
    stream->place.clear();
    stream->began = true;
    stream->ends_in_launch = false;
    return SUCCESS;
}

int cuStreamEndCapture(Stream* stream, std::shared_ptr<Graph>** graph) {
    CALL();
    require(stream->graph && stream->began, "the stream that began");
    // Everything recorded has to be waited for by this stream.
    const auto& waits_for = stream->graph->waits_for;
    std::set<size_t> joined = stream->place;
    for (size_t n = waits_for.size(); n-- > 0;) {
        if (joined.count(n)) {
            joined.insert(waits_for[n].begin(), waits_for[n].end());
        }
    }
    require(joined.size() == waits_for.size(), "no launch that the graph does not wait for");
    *graph = new std::shared_ptr<Graph>(stream->graph);
    player().graphs.insert(*graph);
    for (Stream* other : player().streams) {
        if (other->graph == **graph) {
            other->graph = nullptr;
            other->began = other->ends_in_launch = false;
        }
    }
    for (Event* event : player().events) {
        event->graph = nullptr;
    }
    return SUCCESS;
}

int cuGraphInstantiateWithFlags(std::shared_ptr<Graph>** executable, std::shared_ptr<Graph>* graph, u64 flags) {
    CALL();
    require(flags == 0 && player().graphs.count(graph), "a graph that is alive");
    *executable = new std::shared_ptr<Graph>(*graph);
    player().executables.insert(*executable);
    player().counts["graphs"]++;
    return SUCCESS;
}

int cuGraphDestroy(std::shared_ptr<Graph>* graph) {
    require(player().graphs.erase(graph) == 1, "a graph that is alive");
    delete graph;
    return SUCCESS;
}

int cuGraphExecDestroy(std::shared_ptr<Graph>* executable) {
    require(player().executables.erase(executable) == 1, "a graph that is alive");
    delete executable;
    return SUCCESS;
}

int cuGraphLaunch(std::shared_ptr<Graph>* executable, Stream* stream) {
    CALL();
    require(player().executables.count(executable), "a graph that is alive");
    Operation operation{Operation::GRAPH};
    operation.graph = *executable;
    queue(stream, operation);
    player().counts["replays"]++;
    return SUCCESS;
}

struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int allowed;
    } value;
};

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned n_attributes;
};

int cuLaunchKernelEx(const LaunchConfig* config, const host::Kernel* kernel, void** arguments, void** extra) {
    CALL();
    require(extra == nullptr && config->shared_bytes == 0, "no extras");
    require(config->block[0] == kernel->threads, "threads of a block");
    require(config->block[1] == 1 && config->block[2] == 1, "a block of one dimension");
    require(config->grid[0] > 0 && config->grid[1] > 0 && config->grid[2] > 0, "a grid of some block");
    require(config->grid[1] < 65536 && config->grid[2] < 65536, "a grid within its limits");
    Stream* stream = config->stream;
    if (config->n_attributes > 0) {
        const LaunchAttribute& attribute = *config->attributes;
        require(config->n_attributes == 1 && attribute.id == 6 && attribute.value.allowed == 1, "a known attribute");
        require(stream->ends_in_launch, "a launch overlaps nothing but a launch");
        require(player().number("arch", 90) >= 90, "a card that can overlap launches");
        player().counts["overlaps"]++;
    }
    const uint3 grid = {config->grid[0], config->grid[1], config->grid[2]};
    Launch launch{kernel, grid, std::vector<u64>((kernel->args_bytes + 7) / 8)};
    memcpy(launch.args.data(), arguments[0], kernel->args_bytes);
    if (stream->graph) {
        Graph& graph = *stream->graph;
        graph.waits_for.push_back(stream->place);
        graph.nodes.push_back(launch);
        const auto& streams = player().streams;
        graph.streams.push_back((size_t)(std::find(streams.begin(), streams.end(), stream) - streams.begin()));
        stream->place = {graph.nodes.size() - 1};
        stream->ends_in_launch = true;
        player().counts["recorded"]++;
        return SUCCESS;
    }
    Operation operation{Operation::LAUNCH};
    operation.launch = launch;
    queue(stream, operation);
    player().counts["launches"]++;
    return SUCCESS;
}

int cuEventCreate(Event** event, unsigned flags) {
    CALL();
    require(flags == 3 || flags == 0, "an event without a clock that lets the host sleep, or one with a clock");
    *event = new Event;
    (*event)->has_clock = flags == 0;
    player().events.insert(*event);
    return SUCCESS;
}

int cuEventRecord(Event* event, Stream* stream) {
    CALL();
    require(player().events.count(event), "an event that is alive");
    stream->ends_in_launch = false;
    event->graph = stream->graph;
    if (stream->graph) {
        event->place = stream->place;
        return SUCCESS;
    }
    Operation record{Operation::RECORD};
    record.event = event;
    record.count = ++event->recorded;
    queue(stream, record);
    return SUCCESS;
}

int cuEventSynchronize(Event* event) {
    CALL();
    require(player().events.count(event) && !event->graph, "an event that is alive, and not recorded into a graph");
    run_until([&] { return event->reached >= event->recorded; });
    player().counts["waits"]++;
    return SUCCESS;
}

// Every launch takes a quarter of a millisecond.
int cuEventElapsedTime(float* ms, Event* earlier, Event* later) {
    CALL();
    for (const Event* event : {earlier, later}) {
        require(event->has_clock && event->recorded == 1 && event->reached == 1, "a clock that was reached");
    }
    *ms = 0.25f;
    return SUCCESS;
}

int cuEventDestroy_v2(Event* event) {
    // What is queued with it must not find it gone.
    run_all();
    require(player().events.erase(event) == 1, "an event that is alive");
    delete event;
    return SUCCESS;
}

int cuMemAlloc_v2(u64* address, size_t bytes) {
    CALL();
    require(bytes > 0, "memory of some bytes");
    if (bytes > player().number("memory", 1 << 30) - player().in_use) {
        return OUT_OF_MEMORY;
    }
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    // What a card's memory holds is anything.
    memset(memory, 0xc1, bytes);
    *address = (u64)memory;
    player().memory[*address] = bytes;
    player().in_use += bytes;
    return SUCCESS;
}

int cuMemFree_v2(u64 address) {
    run_all();
    const auto found = player().memory.find(address);
    require(found != player().memory.end(), "memory that is alive");
    player().in_use -= found->second;
    player().memory.erase(found);
    free((void*)address);
    return SUCCESS;
}

int cuMemsetD8Async(u64 address, unsigned char value, size_t bytes, Stream* stream) {
    CALL();
    check_memory(address, bytes);
    Operation set{Operation::SET};
    set.to = (void*)address;
    set.bytes = bytes;
    set.count = value;
    queue(stream, set);
    return SUCCESS;
}

int cuMemHostAlloc(void** start, size_t bytes, unsigned flags) {
    CALL();
    require(bytes > 0 && flags == 0, "memory of some bytes");
    *start = malloc(bytes);
    memset(*start, 0xc1, bytes);
    player().pinned[*start] = bytes;
    return SUCCESS;
}

int cuMemFreeHost(void* start) {
    require(player().pinned.erase(start) == 1, "memory that is alive");
    for (const Stream* stream : player().streams) {
        for (const Operation& operation : stream->queue) {
            require(operation.from != start && operation.to != start, "memory that no copy needs");
        }
    }
    free(start);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, Stream* stream) {
    CALL();
    check_memory(to, bytes);
    check_pinned(from, bytes);
    Operation copy{Operation::COPY};
    copy.to = (void*)to;
    copy.from = from;
    copy.bytes = bytes;
    queue(stream, copy);
    return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, Stream* stream) {
    CALL();
    check_memory(from, bytes);
    check_pinned(to, bytes);
    Operation copy{Operation::COPY};
    copy.to = to;
    copy.from = (const void*)from;
    copy.bytes = bytes;
    queue(stream, copy);
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    CALL();
    require(memcmp(image, "\x7f" "ELF", 4) == 0, "a cubin");
    *module = new char;
    player().modules.insert(*module);
    return SUCCESS;
}

int cuModuleGetFunction(const host::Kernel** function, void* module, const char* name) {
    CALL();
    require(player().modules.count(module), "a module that is alive");
    for (u32 n = 0; n < host::N_KERNELS; n++) {
        if (strcmp(host::KERNELS[n]->name, name) == 0) {
            *function = host::KERNELS[n];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int cuModuleUnload(void* module) {
    require(player().modules.erase(module) == 1, "a module that is alive");
    delete static_cast<char*>(module);
    return SUCCESS;
}

}  // extern "C"
