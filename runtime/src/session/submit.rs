//! Encoding and submitting a step.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::receipt::token;
use super::{Launch, Piece, Session, Submitted};
use crate::memory::TOKEN;
use crate::{Error, Result};

/// A launch that takes longer is told of: nothing can be cut there.
const DANGEROUS: Duration = Duration::from_millis(1500);

impl Session {
    /// Submits a step with the inputs written since the last one. Every input must have been written.
    /// Returns the step's number, counted from 0.
    pub fn step(&mut self) -> Result<u64> {
        if self.written.is_empty() {
            self.prepare()?;
        }
        if let Some((&id, _)) = self.written.iter().find(|(_, written)| !**written) {
            return Err(Error::graph(
                format!("input {} was not written before the step", self.graph.tensor(id).name),
                "write every input before every step",
            ));
        }
        let Some((submission, parts)) = self.submit_parts()? else { return Ok(self.steps) };
        let step = self.steps;
        if let Some(flight) = self.flights.get_mut(self.next) {
            if let Some((buffer, mapping)) = &flight.upload {
                mapping.map(buffer, wgpu::MapMode::Write);
            }
            if let Some((buffer, mapping)) = &flight.download {
                mapping.map(buffer, wgpu::MapMode::Read);
            }
            if flight.upload.is_none() && flight.download.is_none() {
                flight.done.on_done(&self.device.queue);
            }
            flight.submitted = Some(Submitted { step, parts, last: submission });
        }
        self.next = (self.next + 1) % self.flights.len().max(1);
        self.written.values_mut().for_each(|written| *written = false);
        self.steps += 1;
        Ok(step)
    }

    /// Submits the launches of a step, its upload before and its download behind them, in as many parts as the pace wants.
    /// Returns the last submission, and how many there were.
    fn submit_parts(&mut self) -> Result<Option<(wgpu::SubmissionIndex, u32)>> {
        let measured = self.pace.begin();
        if measured {
            self.device.wait(None)?;
        }
        let parts = self.pace.parts();
        let (mut submission, mut took) = (None, Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let mut encoder =
                self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            if index == 0 {
                self.write_token()?;
                self.encode_upload(&mut encoder);
            }
            self.encode_launches(&mut encoder, part.clone());
            if index + 1 == parts.len() {
                self.encode_download(&mut encoder)?;
            }
            let started = Instant::now();
            let submitted = self.device.submit(encoder)?;
            if measured {
                self.device.wait(Some(submitted.clone()))?;
                took.push(started.elapsed());
            }
            submission = Some(submitted);
        }
        if measured && let Some((launch, took)) = self.pace.measured(&took) {
            self.warn_of_long_launch(launch, took);
        }
        Ok(submission.map(|last| (last, parts.len() as u32)))
    }

    /// Where the token lies behind the inputs: a multiple of 8, as mapped ranges begin.
    fn token_offset(&self) -> u64 {
        self.plan.input_bytes.next_multiple_of(8)
    }

    /// Writes the token of the next step behind its inputs.
    fn write_token(&self) -> Result<()> {
        let upload = self.flights.get(self.next).and_then(|flight| flight.upload.as_ref());
        if let (Some((buffer, _)), Some(_)) = (upload, &self.receipts) {
            let at = self.token_offset();
            let mut view = buffer
                .get_mapped_range_mut(at..at + TOKEN)
                .map_err(|error| self.device.cause(Error::gpu(error.to_string())))?;
            view.copy_from_slice(&token(self.number, self.steps));
        }
        Ok(())
    }

    /// A kernel that alone takes as long as systems allow is worth a line; not on a CPU, which nobody resets.
    fn warn_of_long_launch(&self, launch: usize, took: Duration) {
        if self.device.caps().cpu || took < DANGEROUS {
            return;
        }
        let dispatches = self.plan.steps.iter().flat_map(|step| &step.dispatches);
        let kernel = dispatches.map(|dispatch| dispatch.kernel.shader).nth(launch).unwrap_or_default();
        self.device.warn(&format!(
            "one launch of kernel {kernel} takes {:.1} s on this GPU; Windows resets GPUs that are busy for 2 s: should \
             that happen, take a smaller batch",
            took.as_secs_f64()
        ));
    }

    /// The number of submissions of the next step. Its launches are cut so that none should take longer than
    /// [`SessionOptions::longest_submission`], going by the costs of ops on a slow GPU at first, then by what was measured.
    pub fn submissions(&self) -> usize {
        self.pace.parts().len()
    }

    /// The seconds that a piece of a step should take, by what the cuts go by.
    pub(crate) fn seconds_of(&self, piece: Piece) -> f64 {
        let before: usize = self.launches.iter().take(piece.position).map(Vec::len).sum();
        let launches = self.launches.get(piece.position).map_or(0, Vec::len);
        let of_piece = match piece.launch {
            Some(index) => before + index..before + index + 1,
            None => before..before + launches,
        };
        self.pace.seconds(of_piece)
    }

    /// The seconds that a submission should take at most.
    pub(crate) fn longest_submission(&self) -> f64 {
        self.pace.bound()
    }

    /// Encodes some of all launches in a row.
    fn encode_launches(&self, encoder: &mut wgpu::CommandEncoder, part: Range<usize>) {
        let places = self.launches.iter().enumerate().flat_map(|(position, launches)| {
            launches.iter().enumerate().map(move |(index, launch)| (position, index, launch))
        });
        let chosen = places.skip(part.start).take(part.len());
        if self.poison.is_some() {
            for (position, index, _) in chosen.clone() {
                if index == 0 {
                    self.encode_poison(encoder, position);
                }
                self.encode_piece(encoder, Piece { position, launch: Some(index) }, None);
            }
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        if self.poison.is_none() {
            chosen.for_each(|(_, _, launch)| run(&mut pass, launch));
        }
        if let Some(receipts) = &self.receipts {
            receipts.count(&mut pass);
        }
    }

    /// Copies the fetched tensors and the receipt to the staging buffer of the step.
    fn encode_download(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if let Some((buffer, _)) = self.flights.get(self.next).and_then(|flight| flight.download.as_ref()) {
            for (&id, &offset) in self.graph.fetched().iter().zip(&self.download_offsets) {
                let region = self.region(id)?;
                encoder.copy_buffer_to_buffer(region.buffer, region.offset, buffer, offset, region.bytes);
            }
            if let Some(receipts) = &self.receipts {
                receipts.hand_over(encoder, buffer, self.download_bytes);
            }
        }
        Ok(())
    }

    /// Uploads the inputs written for the next step without running it.
    pub(crate) fn upload_only(&mut self) -> Result<()> {
        let mut encoder =
            self.device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.encode_upload(&mut encoder);
        self.device.submit(encoder)?;
        if let Some((buffer, mapping)) = self.flights.get(self.next).and_then(|flight| flight.upload.as_ref())
        {
            mapping.map(buffer, wgpu::MapMode::Write);
        }
        self.written.values_mut().for_each(|written| *written = false);
        self.device.finish()
    }

    /// Unmaps the written staging buffer and copies it to the inputs.
    pub(crate) fn encode_upload(&self, encoder: &mut wgpu::CommandEncoder) {
        let staged = self.flights.get(self.next).and_then(|flight| flight.upload.as_ref());
        if let (Some((buffer, _)), Some(inputs)) = (staged, &self.inputs) {
            buffer.unmap();
            encoder.copy_buffer_to_buffer(buffer, 0, inputs, 0, self.plan.input_bytes);
            if let Some(receipts) = &self.receipts {
                receipts.receive(encoder, buffer, self.token_offset());
            }
        }
    }

    fn encode_poison(&self, encoder: &mut wgpu::CommandEncoder, position: usize) {
        let Some(poison) = &self.poison else { return };
        for life in self.plan.lifetimes().iter().filter(|life| life.first == position) {
            if let Some(slot) = self.slots.get(life.slot) {
                encoder.copy_buffer_to_buffer(poison, 0, slot, life.offset, life.bytes.next_multiple_of(4));
            }
        }
    }

    /// Encodes one node in a pass of its own.
    pub(crate) fn encode_node(&self, encoder: &mut wgpu::CommandEncoder, position: usize) {
        self.encode_piece(encoder, Piece { position, launch: None }, None);
    }

    /// Encodes a piece of a step in a pass of its own.
    pub(crate) fn encode_piece(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        piece: Piece,
        timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let mut pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes: timestamps });
        let launches = self.launches.get(piece.position).map_or(&[][..], Vec::as_slice);
        let chosen = match piece.launch {
            Some(index) => launches.get(index..=index).unwrap_or(&[]),
            None => launches,
        };
        for launch in chosen {
            run(&mut pass, launch);
        }
    }
}

fn run(pass: &mut wgpu::ComputePass<'_>, launch: &Launch) {
    let [x, y, z] = launch.grid;
    pass.set_pipeline(&launch.pipeline.pipeline);
    pass.set_bind_group(0, &launch.group, &[]);
    pass.dispatch_workgroups(x, y, z);
}
