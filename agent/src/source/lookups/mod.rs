//! The kernel's own routing answers: asked for one packet at a time, as
//! `ip route get` does, about the peers that the core names.

pub mod translate;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use netlink_sys::protocols::NETLINK_ROUTE;
use overlaywatch_core::assembly::{SourceId, Update};
use overlaywatch_core::model::{LookupPlan, PeerAnswers, PeerId, RouteAnswer, RouteQuestion};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};

use super::ask::{Question, ask, attribute};
use super::meter::{Closed, disabled, metered};
use super::{SourceError, wire};
use crate::clock;

/// `RTM_F_LOOKUP_TABLE`: the answer names the table that the route is in.
const LOOKUP_TABLE: u32 = 0x1000;

/// Starts the thread in the calling thread's network namespace. It ends when
/// nobody plans any more.
///
/// # Errors
/// When the system refuses a thread.
pub fn spawn(
    is_enabled: bool,
    plan: watch::Receiver<Arc<LookupPlan>>,
    updates: mpsc::Sender<Update>,
) -> io::Result<JoinHandle<()>> {
    let work = move || {
        if is_enabled {
            let Closed = run(plan, &updates);
        } else if disabled(&updates, SourceId::Lookups).is_ok() {
            return;
        }
        tracing::debug!("nobody listens any more");
    };
    thread::Builder::new().name("lookups".to_owned()).spawn(work)
}

/// Answers each plan until there are none any more.
fn run(mut plan: watch::Receiver<Arc<LookupPlan>>, updates: &mpsc::Sender<Update>) -> Closed {
    // A plan is waited for, not looked for: most ticks have none.
    let Ok(runtime) = Builder::new_current_thread().build() else { return Closed };
    let mut buffer = wire::buffer();
    while runtime.block_on(plan.changed()).is_ok() {
        let wanted = Arc::clone(&plan.borrow_and_update());
        if wanted.0.is_empty() {
            continue;
        }
        let answered = metered(updates, SourceId::Lookups, || {
            let of_peer = |(peer, questions): &(PeerId, Vec<RouteQuestion>)| {
                Ok((*peer, look_up(questions, &mut buffer)?))
            };
            let all: Result<Vec<_>, SourceError> = wanted.0.iter().map(of_peer).collect();
            Ok(Update::Lookups(all?))
        });
        if answered.is_err() {
            break;
        }
    }
    Closed
}

/// Asks the questions about one peer.
///
/// # Errors
/// When the kernel does not answer, which a refusal to route is not.
fn look_up(questions: &[RouteQuestion], buffer: &mut [u8]) -> Result<PeerAnswers, SourceError> {
    let at = clock::mono();
    let mut answers = Vec::with_capacity(questions.len());
    for question in questions {
        if let Some(answer) = look_up_one(question, buffer)? {
            answers.push((*question, answer));
        }
    }
    Ok(PeerAnswers { at, answers })
}

/// None where the device that the packet would come in on is gone.
fn look_up_one(
    question: &RouteQuestion,
    buffer: &mut [u8],
) -> Result<Option<RouteAnswer>, SourceError> {
    let body = body(question);
    let mut answer = None;
    let asked = ask(
        Question {
            what: "asking for a route",
            protocol: NETLINK_ROUTE,
            kind: libc::RTM_GETROUTE,
            is_dump: false,
            body: &body,
        },
        buffer,
        |message| {
            if message.kind == libc::RTM_NEWROUTE {
                answer = Some(translate::answer(message.payload)?);
            }
            Ok::<_, translate::Malformed>(())
        },
    );
    match asked {
        Ok(_) => Ok(answer),
        Err(SourceError::Io { what, source }) => match source.raw_os_error() {
            Some(libc::ENODEV) => Ok(None),
            Some(
                errno @ (libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL),
            ) => Ok(Some(RouteAnswer::Refused { errno })),
            _ => Err(SourceError::Io { what, source }),
        },
        Err(error) => Err(error),
    }
}

/// `struct rtmsg` and the attributes of a question (rtm_to_fib_config and
/// inet_rtm_getroute, net/ipv4/route.c).
fn body(question: &RouteQuestion) -> Vec<u8> {
    let (family, to) = translate::parts(question.to);
    let bits = |address: &[u8]| u8::try_from(address.len() * 8).unwrap_or(u8::MAX);
    let source = question.pod.map(|pod| (pod.device, translate::parts(pod.source).1));
    let source_bits = source.as_ref().map_or(0, |(_, address)| bits(address));
    let mut body = vec![u8::try_from(family).unwrap_or(0), bits(&to), source_bits];
    body.extend([0; 5]);
    // IPv6 always names the table, and refuses a question with this flag
    // (inet6_rtm_valid_getroute_req, net/ipv6/route.c).
    let flags = if question.to.is_ipv4() { LOOKUP_TABLE } else { 0 };
    body.extend(flags.to_ne_bytes());
    attribute(&mut body, libc::RTA_DST, &to);
    if let Some((device, address)) = source {
        attribute(&mut body, libc::RTA_SRC, &address);
        attribute(&mut body, libc::RTA_IIF, &device.0.to_ne_bytes());
    }
    body
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use overlaywatch_core::model::{IfIndex, RouteKind};

    use super::*;

    #[test]
    fn the_kernel_knows_its_own_loopback() {
        let question = RouteQuestion { to: [127, 0, 0, 1].into(), pod: None };
        let answers = look_up(&[question], &mut wire::buffer()).unwrap();
        let [(asked, RouteAnswer::Found(found))] = answers.answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!(asked, question);
        assert_eq!(found.kind, RouteKind::Local);
        // Until the first policy rule is made the two tables are one and answer
        // by either name (fib_trie_unmerge, net/ipv4/fib_trie.c).
        assert!([254, 255].contains(&found.table), "table {}", found.table);
        assert_eq!(found.device, Some(IfIndex(1)));
    }

    #[test]
    fn an_ipv6_question_is_one_that_the_kernel_takes() {
        let question = RouteQuestion { to: Ipv6Addr::LOCALHOST.into(), pod: None };
        assert_eq!(body(&question)[8..12], [0; 4]);
        let answers = look_up(&[question], &mut wire::buffer()).unwrap();
        // Where IPv6 is switched off there is no route; a malformed question is EINVAL.
        let invalid = RouteAnswer::Refused { errno: libc::EINVAL };
        assert_ne!(answers.answers[0].1, invalid);
    }

    #[test]
    fn a_plan_is_answered_and_the_thread_ends_with_its_planner() {
        let (planner, plan) = watch::channel(Arc::default());
        let (sender, mut updates) = mpsc::channel(4);
        let thread = spawn(true, plan, sender).unwrap();
        let peer = PeerId([127, 0, 0, 1].into());
        let question = RouteQuestion { to: peer.0, pod: None };
        planner.send_replace(Arc::new(LookupPlan(vec![(peer, vec![question])])));
        let Some(Update::Lookups(answers)) = updates.blocking_recv() else { panic!("no answer") };
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, peer);
        assert!(matches!(updates.blocking_recv(), Some(Update::Source(_))));
        drop(planner);
        thread.join().unwrap();
    }
}
