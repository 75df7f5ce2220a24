//! What is called of the driver, libcuda: owners of what it gives, which free it when dropped, and the calls on them. With
//! `nvrtc` the only unsafe code of the backend.
//!
//! cudarc looks a function up when it is first called, and panics where the driver has not got it. All that is called here
//! is in every driver of CUDA 12.0, and [`init`] refuses older ones. Its own types for streams and memory are not used: they
//! record events around each use of a buffer as soon as there are two streams.

use super::super::compile::{Arch, Version};
use super::super::device::Launch;
use cudarc::driver::sys::*;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr::{from_mut, null_mut};
use std::sync::Arc;

/// Drivers older than this lack functions, or the kernels of this program's compilers.
const OLDEST_DRIVER: Version = Version(12, 0);

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) call: &'static str,
    pub(super) code: CUresult,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = std::ptr::null();
        // SAFETY: it writes a pointer to a constant string, or null for a code that it does not know.
        let known = unsafe { cuGetErrorString(self.code, &mut text) };
        write!(f, "{}: {:?}", self.call, self.code)?;
        if known != CUresult::CUDA_SUCCESS || text.is_null() {
            return Ok(());
        }
        // SAFETY: the driver has just given it.
        write!(f, " ({})", unsafe { CStr::from_ptr(text) }.to_string_lossy())
    }
}

type Called<T> = Result<T, Failure>;

/// `call!(cuFunction(arguments))`: the call, and its failure by name.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        match $function($($argument),*) {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(Failure { call: stringify!($function), code }),
        }
    };
}

/// Something of the driver's.
struct Handle<T>(*mut T);

// SAFETY: the driver lets any thread use what it gives, several at a time too; here each has one owner besides.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

/// Loads the driver; gives its version of CUDA. The error is for a person.
pub(super) fn init() -> Result<Version, String> {
    // SAFETY: what runs on loading is the initialisation of NVIDIA's library.
    if !unsafe { is_culib_present() } {
        let file = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
        return Err(format!("no NVIDIA driver here: {file} is not where the loader looks"));
    }
    let mut number = 0;
    // SAFETY: it writes a number, and is the one call allowed before cuInit.
    unsafe { call!(cuDriverGetVersion(&mut number)) }.map_err(|error| error.to_string())?;
    let version = Version::of_number(number);
    if version < OLDEST_DRIVER {
        return Err(format!("the NVIDIA driver has CUDA {version}; at least {OLDEST_DRIVER} is needed (driver 525)"));
    }
    // SAFETY: no arguments but the flags, which must be 0.
    unsafe { call!(cuInit(0)) }.map_err(|error| match error.code {
        CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver finds no card".into(),
        _ => error.to_string(),
    })?;
    Ok(version)
}

/// How many cards there are, after [`init`].
pub(super) fn count() -> Called<usize> {
    let mut n = 0;
    // SAFETY: it writes a number.
    unsafe { call!(cuDeviceGetCount(&mut n)) }?;
    Ok(n as usize)
}

/// A card as it describes itself.
pub(super) struct Description {
    pub(super) name: String,
    pub(super) arch: Arch,
    pub(super) memory_bytes: u64,
    pub(super) multiprocessors: u32,
}

/// Card number `ordinal`, below [`count`].
pub(super) fn describe(ordinal: usize) -> Called<Description> {
    let device = device(ordinal)?;
    let mut name = [0 as c_char; 256];
    // SAFETY: it writes a C string of at most that length.
    unsafe { call!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device)) }?;
    let mut memory_bytes = 0;
    // SAFETY: it writes a number.
    unsafe { call!(cuDeviceTotalMem_v2(&mut memory_bytes, device)) }?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: it writes a number.
        unsafe { call!(cuDeviceGetAttribute(&mut value, attribute, device)) }.map(|()| value as u32)
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(Description {
        // SAFETY: the driver ends it with a zero within the array.
        name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
        arch: Arch(10 * major + minor),
        memory_bytes: memory_bytes as u64,
        multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn device(ordinal: usize) -> Called<CUdevice> {
    let mut device = 0;
    // SAFETY: it writes a number.
    unsafe { call!(cuDeviceGet(&mut device, ordinal as c_int)) }?;
    Ok(device)
}

/// The primary context of a card. Whatever is made in it holds it.
pub(super) struct Context {
    device: CUdevice,
    handle: Handle<CUctx_st>,
}

impl Context {
    /// Of card number `ordinal`, current on this thread.
    pub(super) fn open(ordinal: usize) -> Called<Arc<Self>> {
        let (device, mut handle) = (device(ordinal)?, null_mut());
        // SAFETY: it writes a handle; released when dropped.
        unsafe { call!(cuDevicePrimaryCtxRetain(&mut handle, device)) }?;
        let context = Self { device, handle: Handle(handle) };
        context.bind()?;
        Ok(Arc::new(context))
    }

    /// Makes it current on this thread, which every call below needs.
    pub(super) fn bind(&self) -> Called<()> {
        // SAFETY: it is retained until it is dropped.
        unsafe { call!(cuCtxSetCurrent(self.handle.0)) }
    }

    /// Bytes that can still be allocated.
    pub(super) fn free_memory(&self) -> Called<u64> {
        let [mut free, mut total] = [0; 2];
        // SAFETY: it writes two numbers.
        unsafe { call!(cuMemGetInfo_v2(&mut free, &mut total)) }?;
        Ok(free as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once. Here and below, what fails while dropping fails since the context is dead: nothing is left to do.
        unsafe { cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of work.
pub(super) struct Stream {
    context: Arc<Context>,
    handle: Handle<CUstream_st>,
}

impl Stream {
    /// One that does not wait for the default stream, which cannot be captured.
    pub(super) fn new(context: &Arc<Context>) -> Called<Self> {
        let mut handle = null_mut();
        // SAFETY: it writes a handle.
        unsafe { call!(cuStreamCreate(&mut handle, CUstream_flags::CU_STREAM_NON_BLOCKING as u32)) }?;
        Ok(Self { context: context.clone(), handle: Handle(handle) })
    }

    /// Waits on the host for all that is queued.
    pub(super) fn synchronize(&self) -> Called<()> {
        // SAFETY: the stream is alive.
        unsafe { call!(cuStreamSynchronize(self.handle.0)) }
    }

    /// What is queued later waits for the event as it was last recorded.
    pub(super) fn wait(&self, event: &Event) -> Called<()> {
        // SAFETY: both are alive, and of one context.
        unsafe { call!(cuStreamWaitEvent(self.handle.0, event.handle.0, 0)) }
    }

    /// Makes a graph of what `record` queues here, and on streams that wait for this one and that this one waits for again.
    pub(super) fn capture(&self, record: impl FnOnce() -> Called<()>) -> Called<Graph> {
        // Other threads may have engines of their own that allocate meanwhile: this thread's calls alone are watched.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and captures nothing yet.
        unsafe { call!(cuStreamBeginCapture_v2(self.handle.0, mode)) }?;
        let recorded = record();
        let (mut graph, mut handle) = (null_mut(), null_mut());
        // SAFETY: it writes a handle, null where the capture failed.
        let ended = unsafe { call!(cuStreamEndCapture(self.handle.0, &mut graph)) };
        recorded.and(ended)?;
        // SAFETY: the graph is whole; what is made of it does not need it any more.
        let made = unsafe { call!(cuGraphInstantiateWithFlags(&mut handle, graph, 0)) };
        // SAFETY: it was made above, and is used no more.
        unsafe { call!(cuGraphDestroy(graph)) }?;
        made.map(|()| Graph { context: self.context.clone(), handle: Handle(handle) })
    }

    /// Queues a launch. `overlaps`: it may start while the launch queued before it on this stream ends, of whose results it
    /// reads nothing before it has waited for them itself.
    pub(super) fn launch(&self, functions: &Functions, launch: &Launch, overlaps: bool) -> Called<()> {
        let Launch { kernel, grid, args, branch: _ } = launch;
        assert_eq!(args.len(), kernel.args_bytes, "{}: its argument", kernel.name);
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.handle.0,
            attrs: from_mut(&mut attribute),
            numAttrs: overlaps.into(),
        };
        let mut arguments = [args.as_ptr().cast_mut().cast::<c_void>()];
        let function = functions.of(kernel.name);
        // SAFETY: the function takes one argument of the size asserted (the compiler has checked it against the kernel's
        // struct), which the call copies. What the kernel does with the addresses in it is the plan's word: they are of
        // buffers of the sizes that backend::checks has asserted.
        unsafe { call!(cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), null_mut())) }
    }

    /// Queues a graph.
    pub(super) fn replay(&self, graph: &Graph) -> Called<()> {
        // SAFETY: both are alive; a launch waits for the one before of the same graph.
        unsafe { call!(cuGraphLaunch(graph.handle.0, self.handle.0)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: nobody uses it after this; the driver lets what is queued end.
        unsafe { cuStreamDestroy_v2(self.handle.0) };
    }
}

/// A place in a queue.
pub(super) struct Event {
    context: Arc<Context>,
    handle: Handle<CUevent_st>,
}

impl Event {
    /// One without a clock, which would take time, and that lets the host sleep: it reads some steps late and need not spin.
    pub(super) fn new(context: &Arc<Context>) -> Called<Self> {
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        Self::with(context, flags)
    }

    /// One with a clock.
    pub(super) fn timed(context: &Arc<Context>) -> Called<Self> {
        Self::with(context, CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    fn with(context: &Arc<Context>, flags: u32) -> Called<Self> {
        let mut handle = null_mut();
        // SAFETY: it writes a handle.
        unsafe { call!(cuEventCreate(&mut handle, flags)) }?;
        Ok(Self { context: context.clone(), handle: Handle(handle) })
    }

    /// Now stands after what is queued on `stream`.
    pub(super) fn record(&self, stream: &Stream) -> Called<()> {
        // SAFETY: both are alive, and of one context.
        unsafe { call!(cuEventRecord(self.handle.0, stream.handle.0)) }
    }

    /// Milliseconds from another to this one, both with a clock, and both reached.
    pub(super) fn ms_since(&self, earlier: &Event) -> Called<f32> {
        let mut ms = 0.0;
        // SAFETY: both are alive; it writes a number.
        unsafe { call!(cuEventElapsedTime(&mut ms, earlier.handle.0, self.handle.0)) }?;
        Ok(ms)
    }

    /// Waits on the host; at once if it was never recorded.
    pub(super) fn synchronize(&self) -> Called<()> {
        // SAFETY: the event is alive.
        unsafe { call!(cuEventSynchronize(self.handle.0)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: nobody uses it after this; streams that wait for it go on to do so.
        unsafe { cuEventDestroy_v2(self.handle.0) };
    }
}

/// Memory of the card.
pub struct Allocation {
    context: Arc<Context>,
    address: CUdeviceptr,
    bytes: usize,
}

impl Allocation {
    /// Memory that is zero for what is queued on `stream` later.
    pub(super) fn zeroed(context: &Arc<Context>, stream: &Stream, bytes: usize) -> Called<Self> {
        let mut address = 0;
        // SAFETY: it writes an address, aligned to 256 bytes at least.
        unsafe { call!(cuMemAlloc_v2(&mut address, bytes)) }?;
        let memory = Self { context: context.clone(), address, bytes };
        // SAFETY: the range is what was allocated.
        unsafe { call!(cuMemsetD8Async(address, 0, bytes, stream.handle.0)) }?;
        Ok(memory)
    }
}

impl super::super::device::Memory for Allocation {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: nobody uses it after this; the driver waits for what is queued.
        unsafe { cuMemFree_v2(self.address) };
    }
}

/// Memory of the host that the card reads and writes by itself. Copies fill it from its start, on one stream; then they are
/// marked, waited for, and it is empty again.
pub(super) struct Pinned {
    context: Arc<Context>,
    start: Handle<u8>,
    bytes: usize,
    /// Bytes that belong to copies.
    used: usize,
    /// Whether `done` stands after all of them.
    marked: bool,
    done: Event,
}

impl Pinned {
    /// Room for `bytes` bytes, at least one.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Called<Self> {
        let (done, mut start) = (Event::new(context)?, null_mut());
        // SAFETY: it writes an address.
        unsafe { call!(cuMemHostAlloc(&mut start, bytes, 0)) }?;
        Ok(Self { context: context.clone(), start: Handle(start.cast()), bytes, used: 0, marked: true, done })
    }

    /// Its size.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that no copy has yet.
    pub(super) fn room(&self) -> usize {
        self.bytes - self.used
    }

    /// Queues a copy of `data`, which is read at once, to byte `offset` of `memory`.
    pub(super) fn upload(&mut self, data: &[u8], stream: &Stream, memory: &Allocation, offset: usize) -> Called<()> {
        assert!(data.len() <= self.room() && offset + data.len() <= memory.bytes, "a copy within bounds");
        // SAFETY: within the allocation, in bytes that no copy under way has.
        let start = unsafe { self.start.0.add(self.used) };
        // SAFETY: as above; `data` is other memory.
        unsafe { start.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
        (self.used, self.marked) = (self.used + data.len(), false);
        // SAFETY: both ranges are within their allocations, which are freed only when it is done.
        unsafe {
            call!(cuMemcpyHtoDAsync_v2(memory.address + offset as u64, start.cast(), data.len(), stream.handle.0))
        }
    }

    /// Queues a copy of `range` of `memory`.
    pub(super) fn download(&mut self, stream: &Stream, memory: &Allocation, range: Range<usize>) -> Called<()> {
        assert!(range.len() <= self.room() && range.end <= memory.bytes, "a copy within bounds");
        let from = memory.address + range.start as u64;
        // SAFETY: within the allocation, in bytes that no copy under way has.
        let start = unsafe { self.start.0.add(self.used) };
        (self.used, self.marked) = (self.used + range.len(), false);
        // SAFETY: both ranges are within their allocations, which are freed only when it is done.
        unsafe { call!(cuMemcpyDtoHAsync_v2(start.cast(), from, range.len(), stream.handle.0)) }
    }

    /// Marks the end of the copies, which were queued on `stream`.
    pub(super) fn mark(&mut self, stream: &Stream) -> Called<()> {
        self.done.record(stream)?;
        self.marked = true;
        Ok(())
    }

    /// Waits for the copies, all of them marked, and forgets them.
    pub(super) fn wait(&mut self) -> Called<()> {
        assert!(self.marked, "the end of the copies is known");
        self.done.synchronize()?;
        self.used = 0;
        Ok(())
    }

    /// As [`Self::wait`]; what was downloaded, one after the other.
    pub(super) fn take(&mut self) -> Called<Vec<u8>> {
        let n_bytes = self.used;
        self.wait()?;
        // SAFETY: within the allocation; copies that are done have written all of it.
        Ok(unsafe { std::slice::from_raw_parts(self.start.0, n_bytes) }.to_vec())
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // Copies that nobody waited for.
        if self.used > 0 {
            // SAFETY: no arguments.
            unsafe { cuCtxSynchronize() };
        }
        // SAFETY: nobody uses it after this.
        unsafe { cuMemFreeHost(self.start.0.cast()) };
    }
}

/// A recorded step.
pub(super) struct Graph {
    context: Arc<Context>,
    handle: Handle<CUgraphExec_st>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: nobody uses it after this; the driver lets what is queued end.
        unsafe { cuGraphExecDestroy(self.handle.0) };
    }
}

/// The kernels of modules that are loaded, by name.
pub(super) struct Functions {
    context: Arc<Context>,
    modules: Vec<Handle<CUmod_st>>,
    by_name: HashMap<&'static str, Handle<CUfunc_st>>,
}

impl Functions {
    /// None yet.
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: context.clone(), modules: Vec::new(), by_name: HashMap::new() }
    }

    /// Loads a module, and finds the kernels in it.
    pub(super) fn load(&mut self, image: &[u8], names: impl Iterator<Item = &'static str>) -> Called<()> {
        let mut module = null_mut();
        // SAFETY: a cubin says how long it is; it is one that NVRTC made, whole as its hash has shown. The call copies it.
        unsafe { call!(cuModuleLoadData(&mut module, image.as_ptr().cast())) }?;
        self.modules.push(Handle(module));
        for name in names {
            let symbol = CString::new(name).expect("no zero byte");
            let mut function = null_mut();
            // SAFETY: the module is loaded, and stays so while the functions are here.
            unsafe { call!(cuModuleGetFunction(&mut function, module, symbol.as_ptr())) }?;
            self.by_name.insert(name, Handle(function));
        }
        Ok(())
    }

    fn of(&self, name: &str) -> CUfunction {
        self.by_name.get(name).unwrap_or_else(|| panic!("{name} is in no module's table")).0
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        let _ = self.context.bind();
        for module in &self.modules {
            // SAFETY: nobody launches its functions after this.
            unsafe { cuModuleUnload(module.0) };
        }
    }
}
