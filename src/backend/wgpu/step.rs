//! A step: dispatches gathered while ops are recorded, encoded as one pass and sent by one submit, and its bytes read
//! back when the host asks for them, some steps later.

use super::Wgpu;
use super::device::Device;
use super::memory::Buf;
use super::pipelines::Dispatch;
use crate::Result;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Ops being recorded.
#[derive(Default)]
pub struct Pass {
    pub(super) dispatches: Vec<Dispatch>,
}

/// A submitted step. Its bytes are copied by the device into a buffer of their own as soon as it ends.
pub struct Receipt {
    submission: ::wgpu::SubmissionIndex,
    staging: Option<Staging>,
}

struct Staging {
    buffer: ::wgpu::Buffer,
    bytes: u64,
    mapped: Arc<OnceLock<Result<(), ::wgpu::BufferAsyncError>>>,
}

impl Wgpu {
    pub(super) fn submit_pass(&self, pass: &Pass, reads: &[(&Buf, Range<usize>)]) -> Result<Receipt> {
        let device = &self.device;
        // A shader or a bind group that did not come to be is known by now; nothing is sent then.
        device.check()?;
        let mut encoder = device.device.create_command_encoder(&Default::default());
        if !pass.dispatches.is_empty() {
            let mut compute = encoder.begin_compute_pass(&Default::default());
            for Dispatch { made, grid: [x, y, z] } in &pass.dispatches {
                compute.set_pipeline(&made.pipeline);
                compute.set_bind_group(0, &made.bind_group, &[]);
                compute.dispatch_workgroups(*x, *y, *z);
            }
        }
        let bytes = reads.iter().map(|(_, range)| range.len() as u64).sum();
        let buffer = (bytes > 0).then(|| self.take_staging(bytes));
        if let Some(staging) = &buffer {
            let mut end = 0;
            for (buf, range) in reads {
                encoder.copy_buffer_to_buffer(&buf.buffer, range.start as u64, staging, end, range.len() as u64);
                end += range.len() as u64;
            }
        }
        let commands = encoder.finish();
        device.check()?;
        let submission = device.queue.submit([commands]);
        device.check()?;
        Ok(Receipt { submission, staging: buffer.map(|buffer| Staging::map(buffer, bytes)) })
    }

    pub(super) fn collect_bytes(&self, receipt: Receipt) -> Result<Vec<u8>> {
        self.device.check()?;
        self.device.wait(Some(receipt.submission))?;
        let Some(staging) = receipt.staging else { return Ok(Vec::new()) };
        let bytes = staging.take(&self.device)?;
        self.staging.borrow_mut().push(staging.buffer);
        Ok(bytes)
    }

    /// A free staging buffer that is large enough, or a new one: as many as there are steps under way.
    fn take_staging(&self, bytes: u64) -> ::wgpu::Buffer {
        let mut free = self.staging.borrow_mut();
        if let Some(index) = free.iter().position(|buffer| buffer.size() >= bytes) {
            return free.swap_remove(index);
        }
        // All are too small; the new one takes the place of one of them, so that they do not add up.
        free.pop();
        self.device.device.create_buffer(&::wgpu::BufferDescriptor {
            label: Some("staging"),
            size: bytes,
            usage: ::wgpu::BufferUsages::MAP_READ | ::wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }
}

impl Staging {
    fn map(buffer: ::wgpu::Buffer, bytes: u64) -> Self {
        let mapped = Arc::new(OnceLock::new());
        let answer = Arc::clone(&mapped);
        // Called once.
        buffer.map_async(::wgpu::MapMode::Read, 0..bytes, move |result| drop(answer.set(result)));
        Self { buffer, bytes, mapped }
    }

    fn take(&self, device: &Device) -> Result<Vec<u8>> {
        match self.mapped.get() {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(device.error(error)),
            None => return Err(device.error("a step ended without its bytes")),
        }
        let view = self.buffer.get_mapped_range(0..self.bytes).map_err(|error| device.error(error))?;
        let bytes = view.to_vec();
        drop(view);
        self.buffer.unmap();
        Ok(bytes)
    }
}
