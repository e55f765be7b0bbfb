//! Frames from the wire: no bytes make the reader panic, however they are cut; what it accepts it writes again.

#![no_main]

use engine::{
    frame::{Content, ContentBuilder, Control, Deframer, Frame, FrameError, Kind, LeafDigests, Opened},
    units::Digest,
};
use homeward_fuzz::mend_frames;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let mut mended = bytes.to_vec();
    mend_frames(&mut mended, None);
    read(&mended);
});

fn read(bytes: &[u8]) {
    let (now, later) = bytes.split_at(bytes.len() / 3);
    let (whole, cut) = (deframe(&[bytes]), deframe(&[now, later]));
    assert_eq!(whole.1, cut.1);
    let bytes_of = |frames: &[Frame]| frames.iter().map(|frame| frame.bytes().clone()).collect::<Vec<_>>();
    assert_eq!(bytes_of(&whole.0), bytes_of(&cut.0));
    whole.0.iter().for_each(open);
}

fn deframe(pieces: &[&[u8]]) -> (Vec<Frame>, Option<FrameError>) {
    let (mut deframer, mut frames) = (Deframer::default(), Vec::new());
    for piece in pieces {
        deframer.feed(piece);
        loop {
            match deframer.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn open(frame: &Frame) {
    let mut header = frame.header().clone();
    if header.kind == Kind::Control {
        let _ = Control::from_frame(frame);
        return;
    }
    // The chain that it should have is in the error: with it, the content is looked at.
    let sealed = match frame.open(Digest::ZERO) {
        Err(FrameError::Chain { computed, .. }) => {
            header.chain = computed;
            let body = &frame.bytes()[header.encode().len()..];
            Frame::parse([&header.encode()[..], body].concat().into()).expect("only the chain is another")
        }
        _ => frame.clone(),
    };
    match sealed.open(Digest::ZERO) {
        Ok(Opened::Data(content)) => check(&content, header.extents),
        Ok(Opened::Seal(point)) => assert_eq!(serde_json::from_str(&point.to_json()).ok(), Some(point)),
        Ok(Opened::Digests(digests)) => {
            assert_eq!(LeafDigests::new(digests.entries().to_vec()).to_bytes(), digests.to_bytes());
        }
        Err(FrameError::Chain { .. }) => panic!("a chain that is not what it was computed to be"),
        Err(_) => {}
    }
}

fn check(content: &Content, extents: u32) {
    let mut again = ContentBuilder::default();
    content.extents().for_each(|(extent, payload)| again.push(extent, payload));
    let again = Content::parse(again.finish(), extents).expect("what was accepted is written well");
    assert!(again.extents().eq(content.extents()));
}
