//! The runner's process as a device of the CUDA backend.

use crate::build::{self, Flavour};
use bytemuck::{Pod, Zeroable};
use proxytune::backend::cuda::device::{Device, Launch, Memory, Step};
use proxytune::backend::cuda::kernels::{Kernel, MODULES};
use proxytune::{Error, Result};
use std::collections::BTreeSet;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// In what order blocks run, or threads that can.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Order {
    #[default]
    Forward,
    Reverse,
    Shuffled,
}

impl Order {
    fn name(self) -> &'static str {
        match self {
            Order::Forward => "forward",
            Order::Reverse => "reverse",
            Order::Shuffled => "shuffled",
        }
    }
}

/// Kernels as C++ in a process of their own.
pub(crate) struct HostDevice {
    name: String,
    runner: Arc<Mutex<Runner>>,
}

impl HostDevice {
    /// A fresh process of a flavour that runs blocks, and threads, in this order.
    pub(crate) fn new(flavour: Flavour, [blocks, threads]: [Order; 2]) -> Self {
        let kernels = MODULES.iter().flat_map(|module| module.kernels).collect();
        let name = format!("the host as {flavour:?}, blocks {}, threads {}", blocks.name(), threads.name());
        Self::of_runner(name, &build::runner(flavour), kernels, [blocks, threads])
    }

    /// A process of this program, which has these kernels.
    pub(crate) fn of_runner(name: String, program: &Path, kernels: Vec<&'static Kernel>, orders: [Order; 2]) -> Self {
        let mut child = Command::new(program)
            .args(orders.map(Order::name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the runner starts");
        let requests = BufWriter::new(child.stdin.take().expect("piped"));
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut messages = child.stderr.take().expect("piped");
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            // What cannot be read is not said.
            let _ = messages.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let runner =
            Runner { child, requests, answers, said: Some(said), kernels, launched: BTreeSet::new(), fault: None };
        Self { name, runner: Arc::new(Mutex::new(runner)) }
    }

    /// Tells by name which kernels were launched so far, when the backend has the device.
    pub(crate) fn launched(&self) -> impl Fn() -> BTreeSet<&'static str> + use<> {
        let runner = self.runner.clone();
        move || lock(&runner).launched.clone()
    }

    fn runner(&self) -> MutexGuard<'_, Runner> {
        lock(&self.runner)
    }
}

fn lock(runner: &Mutex<Runner>) -> MutexGuard<'_, Runner> {
    runner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Memory of the runner.
pub(crate) struct HostMemory {
    address: u64,
    bytes: usize,
    runner: Arc<Mutex<Runner>>,
}

impl Memory for HostMemory {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let request = Request { what: FREE, address: self.address, ..Request::zeroed() };
        // A device that is gone has freed everything.
        let _ = lock(&self.runner).send(request, &[]);
    }
}

const ALLOCATE: u32 = 0;
const FREE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 3;
const LAUNCH: u32 = 4;

/// main.cpp says what each means.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Request {
    what: u32,
    kernel: u32,
    grid: [u32; 3],
    reserved: u32,
    address: u64,
    bytes: u64,
}

struct Runner {
    child: Child,
    requests: BufWriter<ChildStdin>,
    answers: BufReader<ChildStdout>,
    said: Option<JoinHandle<String>>,
    /// In the order of its own table.
    kernels: Vec<&'static Kernel>,
    launched: BTreeSet<&'static str>,
    fault: Option<Error>,
}

impl Runner {
    fn send(&mut self, request: Request, data: &[u8]) -> Result<()> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let sent = self.requests.write_all(bytemuck::bytes_of(&request)).and_then(|()| self.requests.write_all(data));
        sent.map_err(|_| self.broken())
    }

    fn answer(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut answer = vec![0; bytes];
        let got = self.requests.flush().and_then(|()| self.answers.read_exact(&mut answer));
        match got {
            Ok(()) => Ok(answer),
            Err(_) => Err(self.broken()),
        }
    }

    /// What the process said before it ended; from now on the answer to everything.
    fn broken(&mut self) -> Error {
        let status = self.child.wait().expect("a child of ours");
        let said = self.said.take().expect("it breaks once").join().unwrap_or_default();
        let fault = Error::Device { backend: "cuda", message: format!("the runner ended ({status})\n{said}") };
        self.fault = Some(fault.clone());
        fault
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let kernel = self.kernels.iter().position(|kernel| kernel.name == launch.kernel.name);
        let kernel = kernel.expect("a kernel of the runner's table") as u32;
        let bytes = launch.args.len() as u64;
        self.launched.insert(launch.kernel.name);
        self.send(Request { what: LAUNCH, kernel, grid: launch.grid, bytes, ..Request::zeroed() }, &launch.args)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        if self.fault.is_none() {
            // The end of its requests ends it; a test that fails must not leave it behind.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Device for HostDevice {
    type Memory = HostMemory;
    type Receipt = Vec<u8>;

    const LAG: usize = 2;

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn free_memory(&self) -> Option<u64> {
        None
    }

    fn alloc(&self, _label: &'static str, bytes: usize) -> Result<Self::Memory> {
        let mut runner = self.runner();
        runner.send(Request { what: ALLOCATE, bytes: bytes as u64, ..Request::zeroed() }, &[])?;
        let address = bytemuck::pod_read_unaligned(&runner.answer(8)?);
        Ok(HostMemory { address, bytes, runner: self.runner.clone() })
    }

    fn upload(&self, memory: &Self::Memory, offset: usize, data: &[u8]) -> Result<()> {
        let (address, bytes) = (memory.address + offset as u64, data.len() as u64);
        self.runner().send(Request { what: WRITE, address, bytes, ..Request::zeroed() }, data)
    }

    fn read(&self, memory: &Self::Memory, range: Range<usize>) -> Result<Vec<u8>> {
        let (address, bytes) = (memory.address + range.start as u64, range.len() as u64);
        let mut runner = self.runner();
        runner.send(Request { what: READ, address, bytes, ..Request::zeroed() }, &[])?;
        runner.answer(range.len())
    }

    fn submit(&self, step: &Step, reads: &[(&Self::Memory, Range<usize>)]) -> Result<Self::Receipt> {
        for launch in &step.launches {
            self.runner().launch(launch)?;
        }
        let mut answer = Vec::new();
        for (memory, range) in reads {
            answer.extend(self.read(memory, range.clone())?);
        }
        Ok(answer)
    }

    fn collect(&self, receipt: Self::Receipt) -> Result<Vec<u8>> {
        Ok(receipt)
    }
}
