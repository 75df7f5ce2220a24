//! Adapters, the device, and its one fault: the first thing that goes wrong is kept, and every later call returns it.

use super::Options;
use crate::{Error, Result};
use serde::Serialize;
use std::sync::{Arc, OnceLock};

/// An adapter as `devices` and `doctor` show it. Its place in [`adapters`] is what [`Options::device`] names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Adapter {
    /// The adapter's own name.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Driver and its version, as far as they are told.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub device_type: &'static str,
    /// True where the adapter runs on the CPU: never taken unless asked for.
    pub software: bool,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Largest part of a buffer that an op can bind, in bytes.
    pub max_binding_bytes: u64,
    /// Smallest subgroup, in threads; 0 without subgroup operations.
    pub subgroup_min: u32,
    /// Largest subgroup, in threads; 0 without subgroup operations.
    pub subgroup_max: u32,
}

impl Adapter {
    fn of(adapter: &::wgpu::Adapter) -> Self {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let subgroups = adapter.features().contains(::wgpu::Features::SUBGROUP);
        Self {
            name: info.name,
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            device_type: match info.device_type {
                ::wgpu::DeviceType::DiscreteGpu => "discrete",
                ::wgpu::DeviceType::IntegratedGpu => "integrated",
                ::wgpu::DeviceType::VirtualGpu => "virtual",
                ::wgpu::DeviceType::Cpu => "cpu",
                ::wgpu::DeviceType::Other => "other",
            },
            software: info.device_type == ::wgpu::DeviceType::Cpu,
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            subgroup_min: if subgroups { info.subgroup_min_size } else { 0 },
            subgroup_max: if subgroups { info.subgroup_max_size } else { 0 },
        }
    }

    /// Order of preference, the best first.
    fn rank(&self) -> usize {
        ["discrete", "integrated", "virtual", "other", "cpu"]
            .iter()
            .position(|&kind| kind == self.device_type)
            .unwrap_or(5)
    }
}

/// All adapters of this machine, software ones too.
pub fn adapters() -> Vec<Adapter> {
    found().iter().map(Adapter::of).collect()
}

fn found() -> Vec<::wgpu::Adapter> {
    let mut descriptor = ::wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = ::wgpu::Backends::VULKAN | ::wgpu::Backends::METAL | ::wgpu::Backends::DX12;
    // No validation layers: what they need is not on users' machines, and wgpu checks every call itself.
    descriptor.flags = ::wgpu::InstanceFlags::empty();
    let instance = ::wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(::wgpu::Backends::all()))
}

/// A device, its queue, and its fault.
pub(super) struct Device {
    pub(super) adapter: Adapter,
    pub(super) device: ::wgpu::Device,
    pub(super) queue: ::wgpu::Queue,
    fault: Arc<OnceLock<String>>,
}

impl Device {
    /// The adapter that `options` names, or the best one it allows.
    pub(super) fn open(options: &Options) -> Result<Self> {
        let (adapter, handle) = choose(options)?;
        // Only what every op needs: 8 storage buffers and 16 KiB of workgroup memory are the defaults everywhere.
        let available = handle.limits();
        let required_limits = ::wgpu::Limits {
            max_buffer_size: available.max_buffer_size,
            max_storage_buffer_binding_size: available.max_storage_buffer_binding_size,
            ..::wgpu::Limits::default()
        };
        let descriptor = ::wgpu::DeviceDescriptor {
            label: Some("proxytune"),
            required_features: handle.features() & ::wgpu::Features::SUBGROUP,
            required_limits,
            ..Default::default()
        };
        let refused = |error| Error::device("wgpu", format!("{}: {error}", adapter.name));
        let (device, queue) = pollster::block_on(handle.request_device(&descriptor)).map_err(refused)?;

        let fault = Arc::new(OnceLock::new());
        let (uncaptured, lost) = (Arc::clone(&fault), Arc::clone(&fault));
        // The first message is the cause; what follows it is not kept.
        device.on_uncaptured_error(Arc::new(move |error: ::wgpu::Error| {
            let _ = uncaptured.set(error.to_string());
        }));
        device.set_device_lost_callback(move |reason, message| {
            let _ = lost.set(format!("device lost ({reason:?}): {message}"));
        });
        Ok(Self { adapter, device, queue, fault })
    }

    /// The fault, once there is one.
    pub(super) fn check(&self) -> Result<()> {
        self.fault.get().map_or(Ok(()), |message| Err(self.error(message)))
    }

    /// An error of this device.
    pub(super) fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::device("wgpu", format!("{}: {message}", self.adapter.name))
    }

    /// What `create` makes, unless the device is out of memory.
    pub(super) fn allocated<T>(&self, label: &str, bytes: u64, create: impl FnOnce() -> T) -> Result<T> {
        let scope = self.device.push_error_scope(::wgpu::ErrorFilter::OutOfMemory);
        let made = create();
        if pollster::block_on(scope.pop()).is_some() {
            return Err(self.error(format_args!("out of memory: {label} needs {bytes} bytes")));
        }
        self.check().map(|()| made)
    }

    /// Waits for a submission, or for all of them.
    pub(super) fn wait(&self, submission: Option<::wgpu::SubmissionIndex>) -> Result<()> {
        let wait = ::wgpu::PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(wait);
        self.check()?;
        polled.map(|_| ()).map_err(|error| self.error(error))
    }
}

/// Real GPUs before software ones, and those only where they are accepted or named.
fn choose(options: &Options) -> Result<(Adapter, ::wgpu::Adapter)> {
    let mut found: Vec<_> = found().into_iter().map(|handle| (Adapter::of(&handle), handle)).collect();
    let names: Vec<String> =
        found.iter().map(|(a, _)| format!("{} ({}, {})", a.name, a.backend, a.device_type)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join("; ") };
    let missing = |wanted: String| Error::device("wgpu", format!("no {wanted}; adapters found: {names}"));
    if let Some(index) = options.device {
        return if index < found.len() {
            Ok(found.swap_remove(index))
        } else {
            Err(missing(format!("adapter {index}")))
        };
    }
    let best = |(i, (adapter, _)): &(usize, &(Adapter, ::wgpu::Adapter))| (adapter.rank(), *i);
    let allowed = found.iter().enumerate().filter(|(_, (adapter, _))| options.software || !adapter.software);
    match allowed.min_by_key(best).map(|(i, _)| i) {
        Some(index) => Ok(found.swap_remove(index)),
        None if options.software => Err(missing("adapter of Vulkan, Metal or DirectX 12".into())),
        None => Err(missing("GPU of Vulkan, Metal or DirectX 12 (software adapters only when asked for)".into())),
    }
}
