use std::os::unix::ffi::OsStringExt;

use super::*;

const GOOD: [(&str, &str); 4] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/run/netns/c1"),
];

fn read(changes: &[(&str, &str)]) -> Result<Parameters, Error> {
    let find = |pairs: &[(&str, &str)], name: &str| {
        pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
    };
    Parameters::read(&|name| find(changes, name).or_else(|| find(&GOOD, name)))
}

fn refused(changes: &[(&str, &str)]) -> String {
    let failure = read(changes).expect_err(&format!("{changes:?}")).failure();
    assert_eq!(failure.code, 4, "{changes:?}: {}", failure.msg);
    failure.msg
}

#[test]
fn a_good_environment_is_read() {
    let parameters = read(&[("CNI_ARGS", "A=1;B=")]).unwrap();
    assert_eq!(parameters.command, Command::Add);
    let key = EndpointKey { network: "pods".into(), container: "c1".into(), interface: "eth0".into() };
    assert_eq!(parameters.key("pods"), key);
    assert_eq!(parameters.netns, "/run/netns/c1");
    assert_eq!(parameters.args, BTreeMap::from([("A".into(), "1".into()), ("B".into(), String::new())]));
}

#[test]
fn commands_are_those_of_the_specification_in_capitals() {
    for command in Command::ALL {
        assert_eq!(read(&[("CNI_COMMAND", command.as_str())]).unwrap().command, command);
    }
    for stranger in ["", "add", "UPDATE", " ADD", "ADD "] {
        assert!(refused(&[("CNI_COMMAND", stranger)]).contains("CNI_COMMAND"), "{stranger:?}");
    }
}

#[test]
fn container_ids_are_plain_names() {
    for good in ["c1", "0", "default-web", "a_b.c-d", &"f".repeat(64)] {
        assert_eq!(read(&[("CNI_CONTAINERID", good)]).unwrap().container, good);
    }
    for bad in ["", "-x", ".x", "_x", "a%b", "a b", "a/b", "../../etc/x", "é", "a\n"] {
        assert!(refused(&[("CNI_CONTAINERID", bad)]).contains("CNI_CONTAINERID"), "{bad:?}");
    }
}

#[test]
fn interface_names_are_what_the_kernel_takes() {
    for good in ["eth0123456789ab", "e", "net1.100", "...", "é", "eth0-x"] {
        assert_eq!(read(&[("CNI_IFNAME", good)]).unwrap().interface, good);
    }
    let bad = ["eth0123456789abc", "a/b", "a:b", "a b", "a\tb", "a\u{b}b", ".", "..", "", "eth%d", "à"];
    for bad in bad {
        assert!(refused(&[("CNI_IFNAME", bad)]).contains("CNI_IFNAME"), "{bad:?}");
    }
}

#[test]
fn every_bad_variable_is_named_at_once() {
    let message =
        refused(&[("CNI_CONTAINERID", ""), ("CNI_IFNAME", "a/b"), ("CNI_NETNS", ""), ("CNI_ARGS", "x")]);
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let bytes = |name: &str| match name {
        "CNI_IFNAME" => Some(OsString::from_vec(vec![0xff])),
        _ => GOOD.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
    };
    assert!(Parameters::read(&bytes).unwrap_err().failure().msg.contains("CNI_IFNAME"));
}

#[test]
fn each_command_asks_for_what_it_needs() {
    let netns = [("CNI_NETNS", "")];
    assert!(refused(&[netns[0], ("CNI_COMMAND", "CHECK")]).contains("CNI_NETNS"));
    assert_eq!(read(&[netns[0], ("CNI_COMMAND", "DEL")]).unwrap().netns, "");
    let none = [("CNI_CONTAINERID", ""), ("CNI_IFNAME", ""), netns[0]];
    for command in ["GC", "STATUS", "VERSION"] {
        read(&[("CNI_COMMAND", command), none[0], none[1], none[2]]).unwrap();
    }
    assert!(refused(&[("CNI_COMMAND", "DEL"), none[0]]).contains("CNI_CONTAINERID"));
}

#[test]
fn arguments_are_pairs() {
    let kubelet = "IgnoreUnknown=1;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=c1";
    for good in [kubelet, "K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;FOO=BAR", "", ";", "A=1;"] {
        read(&[("CNI_ARGS", good)]).expect(good);
    }
    for bad in ["K8S_POD_NAME", "A=B=C", "=B", "A=1;;B=2", "A=1; ", "A=1;;"] {
        assert!(refused(&[("CNI_ARGS", bad)]).contains("CNI_ARGS"), "{bad:?}");
    }
}

#[test]
fn a_deletion_goes_on_past_arguments_that_nobody_can_read() {
    let parameters = read(&[("CNI_COMMAND", "DEL"), ("CNI_ARGS", "K8S_POD_NAME")]).unwrap();
    assert!(parameters.args.is_empty());
}

#[test]
fn a_pod_has_namespace_and_name() {
    let pod = |args| read(&[("CNI_ARGS", args)]).unwrap().pod();
    let expected = PodName { namespace: "n".into(), name: "p".into() };
    assert_eq!(pod("K8S_POD_NAME=p;IgnoreUnknown=1;K8S_POD_NAMESPACE=n"), Some(expected));
    assert_eq!(pod("IgnoreUnknown=1;K8S_POD_NAME=web"), None, "podman");
    assert_eq!(pod("K8S_POD_NAME=;K8S_POD_NAMESPACE=n"), None);
    assert_eq!(pod(""), None);
}
