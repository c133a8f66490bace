//! The link of an agent to the in-memory waifud.

use std::collections::VecDeque;
use std::fs::File;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use waifud_api::agent::{
    AgentReport, DiskTicket, Hello, ImageCopied, ImageTickets, WatchFrame, WatchStart, Welcome,
};
use waifud_api::disk_transfer::DiskFrame;
use waifud_api::stream::{StreamId, StreamRefusal};
use waifud_hypervisor::ByteStream;
use waifud_types::{Digest, InstanceId};

use super::{Change, DiskFault, FakeWaifud, Frames, no_such_stream};
use crate::interfaces::{ByteChunks, ControlLink, Destination, FrameStream, LinkError};
use crate::transfer::send;

#[async_trait]
impl ControlLink for FakeWaifud {
    fn local_address(&self) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, 1]))
    }

    async fn hello(&self, hello: &Hello) -> Result<Welcome, LinkError> {
        let mut state = self.online()?;
        if state.duplicate {
            return Err(LinkError::Duplicate {
                message: "this machine is a copy".to_owned(),
            });
        }
        state.facts = Some(hello.facts.clone());
        state.boot = hello.boot_id;
        Ok(Welcome {
            node: state.node,
            incarnation: state.incarnation,
            addresses: Vec::new(),
        })
    }

    async fn watch(&self, start: WatchStart) -> Result<Box<dyn FrameStream>, LinkError> {
        let mut state = self.online()?;
        if let Some(next) = state.next_incarnation.take() {
            state.incarnation = next;
            state.slice.confirmed = None;
        }
        let mut queue = std::collections::VecDeque::new();
        match start.since {
            Some(since)
                if since.incarnation != state.incarnation || since.number < state.trimmed =>
            {
                return Err(LinkError::Gone);
            }
            Some(since) => {
                let missed = state.history.iter().filter(|(n, _)| *n > since.number);
                for (number, change) in missed {
                    if matches!(
                        change,
                        Change::Stream(_)
                            | Change::Ticket(_)
                            | Change::ImageTicket(_)
                            | Change::Names(_)
                    ) {
                        continue;
                    }
                    queue.extend(state.frame(*number, change));
                }
            }
            None => {
                let number = state.number;
                queue.extend(state.frame(number, &Change::Node));
                for id in state.instances.keys() {
                    queue.extend(state.frame(number, &Change::Instance(*id)));
                }
                for id in state.releases.keys() {
                    queue.extend(state.frame(number, &Change::Release(*id)));
                }
                for id in state.incoming.keys() {
                    queue.extend(state.frame(number, &Change::Incoming(*id)));
                }
                for id in state.tombstones.keys() {
                    queue.extend(state.frame(number, &Change::Tombstone(*id)));
                }
                for id in state.peers.keys() {
                    queue.extend(state.frame(number, &Change::Peer(*id)));
                }
            }
        }
        queue.push_back(WatchFrame::Sync {
            revision: state.revision(state.number),
        });
        let stored = start.names.map_or(0, |stored| stored.number);
        queue.extend(state.names_after(stored));
        Ok(Box::new(Frames {
            waifud: self.clone(),
            changes: self.changed.subscribe(),
            incarnation: state.incarnation,
            outages: state.outages,
            queue,
            at: state.number,
        }))
    }

    async fn report(&self, report: &AgentReport) -> Result<(), LinkError> {
        let mut state = self.online()?;
        state.reports += 1;
        for instance in &report.instances {
            let story = state.statuses.entry(instance.id).or_default();
            story.push(instance.clone());
        }
        for tombstone in &report.destroyed {
            if state.tombstones.remove(&tombstone.instance).is_some() {
                state.destroyed.push(tombstone.clone());
            }
        }
        state.released.extend(&report.released);
        for receiving in &report.receiving {
            let id = receiving.instance;
            state.receiving.insert(id, receiving.clone());
        }
        if let Some(unmanaged) = &report.unmanaged {
            state.unmanaged.clone_from(unmanaged);
        }
        if report.facts.is_some() {
            state.facts.clone_from(&report.facts);
        }
        Ok(())
    }

    async fn fetch_image(&self, image: Digest, to: Destination<'_>) -> Result<(), LinkError> {
        let Destination { file: to, progress } = to;
        let bytes = {
            let mut state = self.online()?;
            state.fetches += 1;
            state.images.get(&image).cloned()
        };
        let Some(bytes) = bytes else {
            return Err(LinkError::Refused {
                status: 404,
                message: "there is no such image".to_owned(),
            });
        };
        let mut changes = self.changed.subscribe();
        loop {
            let stall = self.online()?.stall_after;
            let upto = stall.unwrap_or(bytes.len()).min(bytes.len());
            let part = bytes.get(..upto).unwrap_or_default();
            std::fs::write(to, part).map_err(|source| LinkError::File {
                path: to.to_owned(),
                source,
            })?;
            progress(u64::try_from(upto).unwrap_or(0));
            if upto == bytes.len() {
                return Ok(());
            }
            let _changed = changes.changed().await;
        }
    }

    async fn fetch_disk(
        &self,
        instance: InstanceId,
        index: u32,
        from: u64,
    ) -> Result<Box<dyn ByteChunks>, LinkError> {
        let (path, format, fault) = {
            let mut state = self.online()?;
            state.transfers.push(from);
            (
                state.disks.get(&(instance, index)).cloned(),
                state.disk_format,
                state.disk_fault,
            )
        };
        let failed = |message: String| LinkError::Unreachable { message };
        let path = path.ok_or_else(|| failed("there is no such disk".to_owned()))?;
        let mut sent = Vec::new();
        File::open(&path)
            .and_then(|file| {
                send::each_frame(&file, format, from, |frame| {
                    sent.push(frame.to_frame());
                    true
                })
            })
            .map_err(|error| failed(error.to_string()))?;
        match fault {
            Some(DiskFault::EndsAfter(frames)) => sent.truncate(frames),
            Some(DiskFault::Damaged) => damage(&mut sent),
            None => {}
        }
        let chunks = sent.iter().map(DiskFrame::encode).collect();
        Ok(Box::new(Chunks(chunks)))
    }

    async fn image_tickets(&self, image: Digest) -> Result<ImageTickets, LinkError> {
        let issuer = self.online()?.image_tickets.clone();
        Ok(issuer.map_or_else(ImageTickets::default, |issuer| issuer(image)))
    }

    async fn image_copied(&self, image: Digest, copied: ImageCopied) -> Result<(), LinkError> {
        self.online()?.copied.push((image, copied.source));
        Ok(())
    }

    async fn disk_ticket(&self, instance: InstanceId, index: u32) -> Result<DiskTicket, LinkError> {
        let issuer = self.online()?.tickets.clone();
        let issuer = issuer.ok_or_else(|| LinkError::Refused {
            status: 409,
            message: "the node does not listen on a peer port".to_owned(),
        })?;
        Ok(issuer(instance, index))
    }

    async fn fetch_bundle(&self, bundle: Digest) -> Result<Bytes, LinkError> {
        let state = self.online()?;
        let known = state.bundles.get(&bundle).cloned();
        Ok(known.map_or(Bytes::from_static(b"sealed"), Bytes::from))
    }

    async fn stream(&self, id: StreamId) -> Result<Box<dyn ByteStream>, LinkError> {
        let requester = self.take_requester(id)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        requester.send(Ok(ours)).map_err(|_| no_such_stream())?;
        Ok(Box::new(theirs))
    }

    async fn refuse_stream(&self, id: StreamId, refusal: &StreamRefusal) -> Result<(), LinkError> {
        let requester = self.take_requester(id)?;
        requester
            .send(Err(refusal.clone()))
            .map_err(|_| no_such_stream())
    }
}

/// Changes a byte of the last block.
fn damage(frames: &mut [DiskFrame]) {
    let last = frames.iter_mut().rev().find_map(|frame| match frame {
        DiskFrame::Block { bytes, .. } => Some(bytes),
        _ => None,
    });
    if let Some(bytes) = last {
        let mut changed = bytes.to_vec();
        if let Some(byte) = changed.first_mut() {
            *byte = byte.wrapping_add(1);
        }
        *bytes = changed.into();
    }
}

struct Chunks(VecDeque<Bytes>);

#[async_trait]
impl ByteChunks for Chunks {
    async fn chunk(&mut self) -> Result<Option<Bytes>, LinkError> {
        Ok(self.0.pop_front())
    }
}
