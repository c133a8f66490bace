//! Files are sent and hashed by their contents, whatever of them is allocated.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proptest::prelude::*;
use waifud_api::disk_transfer::{BLOCK, DiskFrame};
use waifud_types::DiskFormat;

use super::blocks::{BlockHasher, for_each_block};
use super::send::{OpenDisk, each_frame, send};

/// A file of this length with some bytes at offsets.
fn file(length: u64, parts: &[(u64, Vec<u8>)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length).unwrap();
    for (offset, bytes) in parts {
        file.write_all_at(bytes, *offset).unwrap();
    }
    file
}

fn sent(file: &File, from: u64) -> Vec<DiskFrame> {
    let mut all = Vec::new();
    each_frame(file, DiskFormat::Raw, from, |frame| {
        all.push(frame.to_frame());
        true
    })
    .unwrap();
    all
}

fn hash(frames: &[DiskFrame]) -> [u8; 32] {
    match frames.last() {
        Some(DiskFrame::End { hash }) => *hash,
        other => panic!("no end: {other:?}"),
    }
}

fn offsets(frames: &[DiskFrame]) -> Vec<u64> {
    let block = |frame: &DiskFrame| match frame {
        DiskFrame::Block { offset, .. } => Some(*offset),
        _ => None,
    };
    frames.iter().filter_map(block).collect()
}

#[test]
fn holes_and_written_zeros_are_not_sent_and_do_not_change_the_hash() {
    let data = |at: u64| (at * BLOCK + 5, vec![7; 100]);
    let sparse = file(9 * BLOCK + 10, &[data(2), data(7)]);
    let zeros = usize::try_from(BLOCK).unwrap();
    let written = file(
        9 * BLOCK + 10,
        &[(4 * BLOCK, vec![0; zeros]), data(2), data(7)],
    );
    for frames in [sent(&sparse, 0), sent(&written, 0)] {
        assert_eq!(offsets(&frames), [2 * BLOCK, 7 * BLOCK]);
        assert_eq!(hash(&frames), hash(&sent(&sparse, 0)));
    }
    let other = file(9 * BLOCK + 10, &[data(2), data(6)]);
    assert_ne!(hash(&sent(&other, 0)), hash(&sent(&sparse, 0)));
}

#[test]
fn the_last_block_is_as_long_as_the_file() {
    let file = file(BLOCK + 3, &[(BLOCK, vec![1, 2, 3])]);
    let sent = sent(&file, 0);
    let last = DiskFrame::Block {
        offset: BLOCK,
        bytes: vec![1, 2, 3].into(),
    };
    assert_eq!(sent.get(1), Some(&last));
}

#[test]
fn a_sender_that_skips_much_shows_that_it_still_reads() {
    let megabyte = usize::try_from(BLOCK).unwrap();
    let zeros = file(100 * BLOCK, &[(0, vec![0; 70 * megabyte])]);
    let alive = |frames: &[DiskFrame]| frames.iter().filter(|it| **it == DiskFrame::Alive).count();
    assert_eq!(alive(&sent(&zeros, 0)), 2);
    // What the receiver has is read again, for the hash.
    let data = file(100 * BLOCK, &[(0, vec![1; 70 * megabyte])]);
    assert_eq!(alive(&sent(&data, 0)), 0);
    let rest = sent(&data, 69 * BLOCK);
    assert_eq!((alive(&rest), offsets(&rest).len()), (2, 1));
}

#[tokio::test]
async fn a_sender_gives_a_receiver_up_that_reads_nothing() {
    tokio::time::pause();
    let data = file(100 * BLOCK, &[(0, vec![1; 100 << 20])]);
    let (wire, _silent) = tokio::io::duplex(1 << 16);
    let disk = OpenDisk {
        file: data,
        format: DiskFormat::Raw,
    };
    let sending = tokio::spawn(send(disk, 0, Box::new(wire)));
    // The thread that reads the file keeps the clock from going on by itself.
    while !sending.is_finished() {
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    sending.await.unwrap();
}

#[test]
fn an_empty_file_has_a_header_and_an_end() {
    assert_eq!(sent(&file(0, &[]), 0).len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_resumed_transfer_omits_what_is_there_and_has_the_same_hash(
        parts in prop::collection::vec((0..6 * BLOCK, prop::collection::vec(0..2_u8, 1..50)), 0..8),
        from in 0..7_u64,
    ) {
        let source = file(7 * BLOCK, &parts);
        let whole = sent(&source, 0);
        let from = from * BLOCK;
        let rest = sent(&source, from);
        prop_assert_eq!(hash(&whole), hash(&rest));
        let expected: Vec<u64> = offsets(&whole).into_iter().filter(|at| *at >= from).collect();
        prop_assert_eq!(offsets(&rest), expected);

        // What a receiver computes: the blocks that it has, then those that arrive.
        let mut hasher = BlockHasher::default();
        for_each_block(&source, from, |offset, block| {
            if let Some(block) = block {
                hasher.add(offset, block.bytes());
            }
            true
        }).unwrap();
        for frame in &rest {
            if let DiskFrame::Block { offset, bytes } = frame {
                hasher.add(*offset, bytes);
            }
        }
        prop_assert_eq!(hasher.finish(), hash(&whole));
    }
}
