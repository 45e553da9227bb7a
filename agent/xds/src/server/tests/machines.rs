//! Machines at the server: registered as they connect, heard, and sent away when their registration is.
use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use undermesh_identity::Caller;

use crate::{
    health::Health,
    server::{
        Attendance, Claim, Hub, Limits, Machines, RegistrationError,
        conversation::{Reception, Request, converse},
        fixture::{delta, on_demand, pod, read, set_metadata},
    },
    wire::discovery::DeltaDiscoveryRequest,
};

/// Nothing here takes this long unless it hangs.
const HANGS: Duration = Duration::from_secs(60);
const NAME: &str = "vm-10.0.0.7";

/// Registers whoever names the group `vm`.
struct Desk {
    heard: mpsc::Sender<Health>,
    withdrawal: watch::Sender<bool>,
}

struct Present {
    heard: mpsc::Sender<Health>,
    withdrawal: watch::Receiver<bool>,
}

impl Machines for Desk {
    fn register(
        &self,
        _caller: Caller,
        claim: Claim,
    ) -> BoxFuture<'_, Result<Box<dyn Attendance>, RegistrationError>> {
        let registered = match &*claim.group {
            "vm" => Ok(Box::new(Present {
                heard: self.heard.clone(),
                withdrawal: self.withdrawal.subscribe(),
            }) as Box<dyn Attendance>),
            "later" => Err(RegistrationError::Unavailable("no API server".to_owned())),
            _ => Err(RegistrationError::Refused("no such group".to_owned())),
        };
        Box::pin(std::future::ready(registered))
    }
}

impl Attendance for Present {
    fn name(&self) -> &str {
        NAME
    }

    fn report(&self, health: Health) {
        self.heard.try_send(health).unwrap();
    }

    fn withdrawn(&self) -> BoxFuture<'_, ()> {
        let mut withdrawal = self.withdrawal.clone();
        Box::pin(async move {
            withdrawal.wait_for(|it| *it).await.unwrap();
        })
    }
}

fn caller() -> Caller {
    Caller {
        namespace: "shop".to_owned(),
        service_account: "stock".to_owned(),
        pod: None,
    }
}

/// The first request of a machine of a group, which says that it is another node.
fn first(group: &str) -> DeltaDiscoveryRequest {
    let mut request = on_demand();
    let mut node = crate::server::fixture::node("shop", NAME, "n1");
    set_metadata(&mut node, "AUTO_REGISTER_GROUP", group);
    set_metadata(&mut node, "INSTANCE_IPS", "10.0.0.7");
    request.node = Some(node);
    request
}

fn requests() -> (mpsc::Sender<Request>, ReceiverStream<Request>) {
    let (sender, receiver) = mpsc::channel(8);
    (sender, ReceiverStream::new(receiver))
}

#[tokio::test]
async fn a_machine_is_told_of_itself_heard_and_sent_away_when_its_registration_is() {
    let hub = Hub::new(Limits::default());
    let (own, other) = (pod("vm", "10.0.0.7", NAME), pod("web", "10.0.0.1", "n1"));
    hub.publish(&delta(&[&own, &other], &[], &[]));
    let (heard, mut reports) = mpsc::channel(8);
    let (withdrawal, _) = watch::channel(false);
    let desk = Arc::new(Desk { heard, withdrawal });
    let reception = Reception {
        hub,
        machines: Some(Arc::clone(&desk) as _),
    };
    let (sender, receiver) = requests();
    sender.send(Ok(first("vm"))).await.unwrap();
    let mut responses = Box::pin(converse(reception, caller(), receiver));
    let response = timeout(HANGS, responses.next()).await.unwrap();
    let told = read(&response.unwrap().unwrap()).resources;
    // Its own workload, under the name of its registration, and none of the node that it claims to be.
    assert_eq!(told.len(), 1);
    assert_eq!(&*told[0].name, &*own.uid);

    let ill = Health::Unhealthy("refused".to_owned());
    sender.send(Ok(ill.to_request())).await.unwrap();
    let (end, heard) = timeout(HANGS, async {
        tokio::join!(responses.next(), async {
            let heard = reports.recv().await;
            desk.withdrawal.send_replace(true);
            heard
        })
    })
    .await
    .unwrap();
    assert_eq!(heard, Some(ill));
    assert_eq!(end.unwrap().unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn a_machine_that_is_not_registered_is_not_served() {
    let (heard, _reports) = mpsc::channel(8);
    let (withdrawal, _) = watch::channel(false);
    let desk: Arc<dyn Machines> = Arc::new(Desk { heard, withdrawal });
    for (machines, group, code) in [
        (Some(&desk), "other", Code::PermissionDenied),
        (Some(&desk), "later", Code::Unavailable),
        (None, "vm", Code::Unimplemented),
    ] {
        let hub = Hub::new(Limits::default());
        hub.publish(&delta(&[], &[], &[]));
        let reception = Reception {
            hub: Arc::clone(&hub),
            machines: machines.cloned(),
        };
        let (sender, receiver) = requests();
        sender.send(Ok(first(group))).await.unwrap();
        let mut responses = Box::pin(converse(reception, caller(), receiver));
        let refused = timeout(HANGS, responses.next()).await.unwrap();
        assert_eq!(refused.unwrap().unwrap_err().code(), code);
        assert!(hub.clients().is_empty());
    }
}
