//! Messages between processes: there and back, and what is none.

use calotype_inference::remote::{Message, WireError, Work, read_message, write_message};

fn all() -> Vec<Message> {
    let work = |id: u64, caption: &str| Work { id, sample: id + 1, caption: caption.to_owned() };
    vec![
        Message::Hello {
            version: 1,
            digest: "ab".to_owned(),
            name: "rank 1 on nöde".to_owned(),
            batch: 2,
            capacity: 4,
        },
        Message::Welcome,
        Message::Refused("no".to_owned()),
        Message::Ready,
        Message::Work(vec![work(1 << 60, "A cat."), work(2, "")]),
        Message::Work(Vec::new()),
        Message::Done { id: 7, pixels: vec![1, 2, 3] },
        Message::Done { id: 7, pixels: Vec::new() },
        Message::Failed("out of memory".to_owned()),
        Message::Alive,
        Message::End { failed: true },
        Message::End { failed: false },
    ]
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, message).unwrap();
    bytes
}

#[test]
fn messages_come_back() {
    let stream: Vec<u8> = all().iter().flat_map(bytes).collect();
    let mut reader = &stream[..];
    for message in all() {
        assert_eq!(read_message(&mut reader).unwrap(), message);
    }
    assert!(matches!(read_message(&mut reader), Err(WireError::Broken(_))), "the end of the stream");
}

#[test]
fn a_cut_message_is_a_broken_connection() {
    for message in all() {
        let whole = bytes(&message);
        for length in 0..whole.len() {
            let error = read_message(&mut &whole[..length]).unwrap_err();
            assert!(matches!(error, WireError::Broken(_)), "{message:?}, {length}: {error}");
        }
    }
}

#[test]
fn what_is_no_message_is_told() {
    let of = |kind: u8, content: &[u8]| [&[kind][..], &(content.len() as u32).to_le_bytes(), content].concat();
    for (bytes, what) in [
        (of(9, &[]), "unknown kind"),
        (of(255, &[0; 40]), "unknown kind"),
        (of(1, &[0]), "longer than its content"),
        (of(0, &[0; 3]), "version cut"),
        (of(0, &[1, 0, 0, 0, 200, 0, 0, 0, 65]), "text longer than the message"),
        (of(2, &[2, 0, 0, 0, 0xc3, 0x28]), "text that is not UTF-8"),
        (of(4, &u32::MAX.to_le_bytes()), "more samples than there are bytes"),
        (of(4, &[1, 0, 0, 0, 1]), "sample cut"),
        (of(5, &[0; 7]), "id cut"),
        (of(8, &[2]), "neither true nor false"),
        (of(8, &[]), "neither"),
        (vec![5, 255, 255, 255, 255], "a length of four gigabytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "a browser"),
    ] {
        let error = read_message(&mut &bytes[..]).unwrap_err();
        assert!(matches!(error, WireError::Strange(_)), "{what}: {error}");
    }
}
