"""Sends an invoice in php mode and says what became of every recipient.

The stubs are generated, see ../README.md. Exit codes: 0 everybody was accepted, 1 somebody was
not, 2 the call was refused, 3 the outcome is unknown, 4 the service was not heard in time.
"""

import argparse
import sys
import time

import grpc

from maildispatch.v1 import dispatch_pb2, dispatch_pb2_grpc, mail_pb2

R = mail_pb2.RecipientResult

# Nobody knows what became of these calls. The same request id attaches to the same mail, so they
# are made again; it never makes a second one.
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}


def trailer(error, name):
    """A plain trailer of a failed call; it repeats what stands in grpc-status-details-bin."""
    return dict(error.trailing_metadata() or ()).get(name, "")


def send(stub, request, metadata, give_up):
    """The mail as the journal has it at the end of the call; raises grpc.RpcError."""
    pause = 0.1
    while True:
        try:
            events = stub.Send(request, timeout=max(0.2, give_up - time.monotonic()), metadata=metadata)
            for event in events:
                kind = event.WhichOneof("event")
                if kind == "accepted" and event.accepted.duplicate:
                    print(f"{event.mail_id}: it was accepted before, this is its story", file=sys.stderr)
                elif kind == "completed":
                    return event.completed.mail
            raise SystemExit("the service ended the call without its last event")
        except grpc.RpcError as error:
            wait = max(pause, int(trailer(error, "maildispatch-retry-after-ms") or 0) / 1000)
            if error.code() not in AGAIN or time.monotonic() + wait > give_up:
                raise
            time.sleep(wait)
            pause = min(2 * pause, 5)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--address", default="127.0.0.1:50051")
    args.add_argument("--ca", help="file with the certificate authority; without it the connection is plain")
    args.add_argument("--token-file", help="file with the caller's token")
    args.add_argument("--team", default="")
    args.add_argument("--to", action="append", required=True)
    args.add_argument("--reference", required=True)
    args.add_argument("--request-id", required=True, help="kept with the invoice: a repeat of it sends nothing twice")
    args.add_argument("--timeout", type=float, default=60, help="seconds")
    args = args.parse_args()

    metadata = []
    if args.token_file:
        with open(args.token_file, encoding="ascii") as f:
            metadata.append(("authorization", "Bearer " + f.read().strip()))
    if args.ca:
        with open(args.ca, "rb") as f:
            channel = grpc.secure_channel(args.address, grpc.ssl_channel_credentials(f.read()))
    else:
        channel = grpc.insecure_channel(args.address)

    request = dispatch_pb2.SendRequest(
        request_id=args.request_id,
        options=mail_pb2.SendOptions(team=args.team, kind=mail_pb2.KIND_INVOICE, reference=args.reference),
        message=mail_pb2.MailMessage(to=args.to, subject=f"Invoice {args.reference}", text="Please find your invoice enclosed."),
    )
    with channel:
        try:
            mail = send(dispatch_pb2_grpc.DispatchStub(channel), request, metadata, time.monotonic() + args.timeout)
        except grpc.RpcError as error:
            print(f"{error.code().name} {trailer(error, 'maildispatch-reason')}: {error.details()}", file=sys.stderr)
            return 4 if error.code() in AGAIN | {grpc.StatusCode.DEADLINE_EXCEEDED} else 2

    for r in mail.recipients:
        print(f"{r.address}: {R.Status.Name(r.status)} {R.Failure.Name(r.failure)} {r.smtp_code} {r.detail} {r.hint}".rstrip())
    if any(r.status == R.STATUS_UNKNOWN for r in mail.recipients):
        return 3
    return 0 if all(r.status == R.STATUS_ACCEPTED for r in mail.recipients) else 1


if __name__ == "__main__":
    sys.exit(main())
