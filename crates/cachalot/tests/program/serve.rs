//! `serve` and `ps`: flags, environment and file, a request, and the way down.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command};

use crate::support::{cachalot, file, finished, program};

/// A server that has said where it listens.
struct Server {
    child: Child,
    address: String,
    err: BufReader<std::process::ChildStderr>,
    /// What it has written to standard error.
    log: String,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let err = BufReader::new(child.stderr.take().expect("piped"));
        let mut server = Self { child, address: String::new(), err, log: String::new() };
        server.read_until(" at http://");
        let (_, rest) = server.log.split_once(" at http://").expect("just seen");
        server.address = rest.split_whitespace().next().expect("an address").to_owned();
        server
    }

    /// Reads lines of the log until one holds `text`.
    fn read_until(&mut self, text: &str) {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            if self.err.read_line(&mut line).expect("readable") == 0 {
                panic!("no {text:?}, and the server ends: {:?} {}", self.child.wait(), self.log);
            }
            self.log += &line;
        }
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        let (address, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).expect("sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("UTF-8");
        reply
    }

    /// The status of what it answers to whoever brings `key`.
    fn status(&self, path: &str, key: &str) -> String {
        let reply = self.ask("GET", path, &format!("x-api-key: {key}\r\n"), "");
        reply.split(' ').nth(1).expect("a status").to_owned()
    }

    /// Tells it to stop; its log.
    fn stop(mut self) -> String {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill");
        assert!(told.success());
        self.err.read_to_string(&mut self.log).expect("UTF-8");
        let run = finished(self.child.wait_with_output().expect("the program ends"));
        assert_eq!(run.code, Some(0), "{}", self.log);
        self.log
    }
}

/// The lines of a log in JSON that hold `text`.
fn lines(log: &str, text: &str) -> Vec<serde_json::Value> {
    log.lines().filter(|line| line.contains(text)).map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[cfg(unix)]
#[test]
fn it_answers_tells_about_itself_and_stops_when_told() {
    let (_folder, config) = file(
        "port = 0\nname = \"from-file\"\nalias = [\"other\"]\ngrace = 5\nbody-timeout = 20\nunread-timeout = 30\nlog-format = \"json\"\n",
    );
    let mut command = program(&["serve", "--config", &config, "--threads", "1"]);
    command.env("CACHALOT_NAME", "from-environment").env("CACHALOT_API_KEY", "the-key");
    let server = Server::start(&mut command);

    let body = r#"{"model": "other", "messages": [{"role": "user", "content": "a secret question"}], "max_tokens": 2}"#;
    let refused = server.ask("POST", "/v1/chat/completions", "", body);
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let named = "x-api-key: the-key\r\nx-request-id: my-stream\r\n";
    let streamed = r#"{"prompt": "a secret text", "max_tokens": 2, "stream": true}"#;
    assert!(server.ask("POST", "/v1/completions", named, streamed).contains("[DONE]"));

    let url = format!("http://{}", server.address);
    let run = cachalot(&["ps", "--url", &url, "--api-key", "the-key", "--json"]);
    assert_eq!((run.code, &run.json()["model"]), (Some(0), &"from-environment".into()), "{run:?}");
    // Several keys of the server stand in the variable; its first one will do.
    let output = program(&["ps", "--url", &url]).env("CACHALOT_API_KEY", "the-key, another").output();
    let run = finished(output.expect("the program starts"));
    assert!(run.out.contains("0 running, 0 waiting"), "{run:?}");
    cachalot(&["ps", "--url", &url]).refused(1, &["wants a key"]);

    let log = server.stop();
    assert!(!log.contains("secret") && !log.contains("the-key"), "{log}");
    // From the first line to the last, whoever wrote it.
    assert!(lines(&log, "").len() > 5, "{log}");
    assert!(log.contains("\"status\":401"), "{log}");
    let [ended] = &lines(&log, "an answer ended")[..] else { panic!("{log}") };
    assert_eq!(ended["span"]["id"], "my-stream", "{log}");
    cachalot(&["ps", "--url", &url]).refused(1, &["no server answers"]);
}

#[cfg(unix)]
#[test]
fn what_is_said_of_a_flag_last_replaces_what_was_said_before() {
    let (_folder, config) = file("port = 0\napi-key = [\"one\", \"two\"]\nalias = [\"one\", \"two\"]\n");
    let mut command = program(&["serve", "--config", &config, "--threads", "1", "--api-key", "four"]);
    command.env("CACHALOT_API_KEY", "three").env("CACHALOT_ALIAS", "three,four");
    let server = Server::start(&mut command);
    let keys = ["one", "two", "three", "four"].map(|key| server.status("/v1/models", key));
    assert_eq!(keys, ["401", "401", "401", "200"]);
    let aliases = ["one", "two", "three", "four"].map(|name| server.status(&format!("/v1/models/{name}"), "four"));
    assert_eq!(aliases, ["404", "404", "200", "200"]);
    server.stop();

    let (_folder, config) = file("open = true\nhost = \"0.0.0.0\"\nport = 0\n");
    let output = program(&["serve", "--config", &config]).env("CACHALOT_OPEN", "false").output();
    finished(output.expect("the program starts")).refused(1, &["--open"]);
}

#[cfg(unix)]
#[test]
fn a_state_that_was_damaged_is_said_when_it_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = || {
        let mut command = program(&["serve", "--port", "0", "--threads", "1", "--log-format", "json"]);
        Server::start(command.env("CACHALOT_KEEP", "1G").env("XDG_CACHE_HOME", folder.path()))
    };
    let body = serde_json::json!({"prompt": "one two three ".repeat(100), "max_tokens": 2}).to_string();
    let server = start();
    assert!(server.ask("POST", "/v1/completions", "", &body).starts_with("HTTP/1.1 200"));
    server.stop();
    let store = std::fs::read_dir(folder.path().join("cachalot")).expect("a folder").next().expect("a store");
    for entry in std::fs::read_dir(store.expect("a store").path()).expect("a store") {
        let path = entry.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "dat") {
            let mut bytes = std::fs::read(&path).expect("a file");
            bytes.iter_mut().step_by(500).for_each(|byte| *byte ^= 4);
            std::fs::write(&path, bytes).expect("written");
        }
    }
    let mut server = start();
    assert!(server.ask("POST", "/v1/completions", "", &body).starts_with("HTTP/1.1 200"));
    // Before anybody stops it.
    server.read_until("is damaged and is dropped");
    let log = server.stop();
    assert_eq!(lines(&log, "is damaged and is dropped")[0]["level"], "WARN", "{log}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_with_their_place() {
    for (text, part) in [
        ("prot = 1", "no setting \"prot\""),
        ("port = \"many\"", "many"),
        ("open = 1", "open must be true or false"),
        ("body-timeout = 0", "body-timeout"),
        ("unread-timeout = \"soon\"", "unread-timeout"),
        ("port = [", "is not TOML"),
        ("config = \"x\"", "no setting \"config\""),
        ("alias = [[1]]", "alias"),
    ] {
        let (_folder, config) = file(text);
        let run = cachalot(&["serve", "--config", &config]);
        run.refused(2, &[part, &config]);
    }
    for (variable, value, part) in [
        ("CACHALOT_PORT", "many", "many"),
        ("CACHALOT_KEEP", "much", "much"),
        ("CACHALOT_OPEN", "yes", "true or false"),
        ("CACHALOT_API_KEYS", "the-key", "no such setting"),
        ("CACHALOT_port", "1", "no such setting"),
    ] {
        let run = finished(program(&["serve"]).env(variable, value).output().expect("the program starts"));
        run.refused(2, &[variable, part]);
        assert!(!run.err.contains("the-key"), "{run:?}");
    }
    for (flag, value) in [
        ("--request-timeout", "0"),
        ("--request-timeout", "18446744073709551615"),
        ("--grace", "18446744073709551615"),
        ("--keep-alive", "99999999999"),
        ("--max-connections", "0"),
        ("--max-connections", "18446744073709551615"),
    ] {
        cachalot(&["serve", flag, value]).refused(2, &[flag, value]);
    }
    cachalot(&["serve", "--config", "/nonexistent"]).refused(2, &["cannot read /nonexistent"]);
    cachalot(&["serve", "--host", "0.0.0.0", "--port", "0"]).refused(1, &["--open"]);
    cachalot(&["serve", "--api-key-file", "/nonexistent"]).refused(1, &["cannot read keys"]);
    let (_folder, empty) = file("\n\n");
    cachalot(&["serve", "--api-key-file", &empty]).refused(1, &["holds no key"]);
    cachalot(&["serve", "--max-body", "1G"]).refused(1, &["--max-body"]);
}
