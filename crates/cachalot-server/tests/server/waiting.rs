//! Those who wait, and those who let others wait: signs of life, slow uploads, clients that do not read.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use cachalot_engine::session::Finish;
use cachalot_server::{Limits, ServerOptions};
use cachalot_text::Family;
use serde_json::{Value, json};

use crate::client::{Asked, Reply, get, post};
use crate::playback::{Play, playing};

/// Every API that is asked for a whole answer.
fn questions() -> [(&'static str, Value); 4] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    [
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 9})),
        ("/v1/responses", json!({"input": "hi"})),
        ("/v1/completions", json!({"prompt": "hi"})),
    ]
}

fn impatient() -> ServerOptions {
    ServerOptions { keep_alive: Duration::from_millis(150), ..ServerOptions::default() }
}

fn slow() -> Play {
    Play { ids: vec![633; 3], delay: Duration::from_millis(800), prompt_tokens: 10, ..Play::default() }
}

#[test]
fn those_who_wait_for_a_whole_answer_hear_empty_lines() {
    let (server, playback) = playing(Family::V41, impatient());
    for (path, body) in questions() {
        playback.set(slow());
        let waited = post(server.address, path, &body);
        assert_eq!((waited.status, waited.header("content-type")), (200, Some("application/json")), "{path}");
        assert!(waited.body.starts_with("\n\n"), "{waited:?}");
        playback.set(Play { delay: Duration::ZERO, ..slow() });
        let mut at_once = post(server.address, path, &body);
        assert!(at_once.body.starts_with('{'), "{at_once:?}");
        at_once.body = format!("\n{}", at_once.body);
        let fields = |reply: &Reply| reply.json().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(&waited), fields(&at_once), "{path}");
    }
    // Who leaves then is noticed, too.
    let before = playback.asked();
    (0..before).for_each(|_| _ = playback.end());
    playback.set(Play { delay: Duration::from_millis(1200), ..slow() });
    let (path, body) = &questions()[0];
    let mut asked = Asked::new(server.address, "POST", path, &[], &body.to_string());
    asked.read_until("\r\n\r\n1\r\n\n");
    drop(asked);
    assert_eq!(playback.end(), (Finish::Cancelled, 0));
}

#[test]
fn an_error_has_its_status_until_an_empty_line_has_been_sent() {
    let (server, playback) = playing(Family::V41, impatient());
    for (path, body) in questions() {
        let kind = |reply: &Reply| {
            assert!(reply.message().contains("time for this answer is over"), "{reply:?}");
            reply.json()["error"]["type"].as_str().unwrap().to_owned()
        };
        playback.set(Play { delay: Duration::ZERO, fails: true, ..slow() });
        let at_once = post(server.address, path, &body);
        assert_eq!(at_once.status, 504, "{path}: {at_once:?}");
        playback.set(Play { fails: true, ..slow() });
        let late = post(server.address, path, &body);
        assert_eq!((late.status, kind(&late)), (200, kind(&at_once)), "{path}");
        assert!(late.body.starts_with('\n'));
    }
}

/// A connection over which the body of a request comes in pieces, which has begun.
fn uploading(address: SocketAddr) -> (TcpStream, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    // The server asks for the body when there is room for it.
    assert!(line.starts_with("HTTP/1.1 100"), "{line}");
    reader.read_line(&mut line).unwrap();
    (stream, reader)
}

fn question(bytes: usize) -> String {
    json!({"messages": [{"role": "user", "content": "x".repeat(bytes)}], "thinking": {"type": "disabled"}}).to_string()
}

#[test]
fn a_body_that_does_not_arrive_gives_its_room_back() {
    let room = 1 << 20;
    let limits =
        Limits { body_bytes: room, bodies_bytes: room, body_time: Duration::from_secs(2), ..Limits::default() };
    let (server, playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    playback.plays(&[633]);
    // It says nothing of its length, so it has all the room; a few bytes come now and then.
    let (mut stream, mut reader) = uploading(server.address);
    let dribbles = std::thread::spawn(move || {
        while stream.write_all(b"1\r\n \r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    // Read as it comes: once the server has closed, the next piece that is sent throws away what has not been read.
    let replied = std::thread::spawn(move || {
        let mut reply = Vec::new();
        let _ = reader.read_to_end(&mut reply);
        String::from_utf8(reply).unwrap()
    });
    // Small bodies need no room; a large one waits until the other one's time is over.
    let ask = |bytes: usize| Asked::new(server.address, "POST", "/v1/chat/completions", &[], &question(bytes)).reply();
    assert_eq!(ask(10).status, 200);
    assert_eq!(ask(100_000).status, 200);
    let reply = replied.join().unwrap();
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("did not arrive in time"), "{reply}");
    dribbles.join().unwrap();
}

#[test]
fn who_finds_no_room_in_time_is_told_to_come_back() {
    let room = 1 << 20;
    let mut limits =
        Limits { body_bytes: room, bodies_bytes: room, body_time: Duration::from_secs(60), ..Limits::default() };
    let (patient, _playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    let (mut stream, mut reader) = uploading(patient.address);
    // A body that comes in time is answered, however many pieces it has.
    let body = question(10);
    for piece in body.as_bytes().chunks(7) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
        stream.write_all(piece).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");

    limits.body_time = Duration::from_millis(200);
    let (server, _playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    let first = uploading(server.address);
    // Two that send nothing, and there is room for one when the first one's time is over: the other one's is, too, then.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n";
    let silent = [(); 2].map(|()| {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        stream
    });
    let mut lines = silent.map(|stream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap().to_owned()
    });
    lines.sort();
    assert_eq!(lines, ["408", "503"]);
    drop(first);
}

#[test]
fn a_client_that_reads_nothing_is_left_after_a_while() {
    let limits =
        Limits { connections: 1, unread_events: 1 << 20, unread_time: Duration::from_millis(300), ..Limits::default() };
    let (server, playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    // Far more than the system's buffers hold.
    playback.set(Play { ids: vec![633; 120_000], prompt_tokens: 10, ..Play::default() });
    let mut body = questions()[0].1.clone();
    body["stream"] = true.into();
    body["max_tokens"] = 130_000.into();
    let mut deaf = Asked::new(server.address, "POST", "/v1/chat/completions", &[], &body.to_string());
    deaf.read_until("data: ");
    // There is one connection: it is free when the server has left the first client.
    assert_eq!(get(server.address, "/health").status, 200);
    let rest = deaf.rest();
    assert!(!rest.contains("[DONE]"), "{} bytes", rest.len());
}
