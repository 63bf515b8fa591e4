"""A stand-in for S3 on 127.0.0.1 that checks every signature with botocore's own signer.

    with S3Server() as server:
        server.add("/bucket/a b.jpg", body)
        ...                                        # AWS_ENDPOINT_URL=server.base, keys as in ``server.environment``

Its refusals say as much as Amazon's do: who asked, and what should have been signed.  Faults, ranges and the log are
those of `FaultServer`.
"""

import time
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote_plus, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from support.fault_server import FaultServer, _Handler

KEY, SECRET = "AKIDSTANDIN", "notSoSecret/+="

REFUSAL = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
    f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256 {{target}}</StringToSign></Error>"
)


class S3Server(FaultServer):
    """The server.

    Attributes:
        public: buckets of which anybody may read.
        regions: of buckets that are not in ``us-east-1``; asked for by another one, it says where they are.
        told: in what: a ``header``, the ``body`` as MinIO does, or the ``location`` that it leads to.
        paid: buckets whose readers must say that they pay.
        page: keys on a page of a list.
    """

    def __init__(
        self,
        *,
        public: tuple[str, ...] = (),
        regions: dict[str, str] | None = None,
        paid: tuple[str, ...] = (),
        tls: str | None = None,
    ) -> None:
        super().__init__(tls=tls)
        self.public = public
        self.regions = regions or {}
        self.paid = paid
        self.told = "header"
        self.page = 2

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to use it."""
        return {"AWS_ENDPOINT_URL": self.base, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def answer(self, handler: _Handler) -> None:
        """Answer a request, if its signature is right."""
        bucket = urlsplit(handler.path).path.split("/")[1]
        asked = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        region = self.regions.get(bucket, "us-east-1")
        if "X-Amz-Signature" not in asked:
            if bucket not in self.public:
                return self._refuse(handler, 403, "AccessDenied", "Access Denied")
        elif asked["X-Amz-Credential"].split("/")[2] != region:
            if self.told == "location":
                there = f"https://{bucket}.s3.{region}.amazonaws.com{handler.path}"
                return self._refuse(handler, 307, "TemporaryRedirect", "Elsewhere", {"Location": there})
            if self.told == "body":
                wrong = f"The region is wrong; expecting '{region}'.</Message><Region>{region}</Region><Message>"
                return self._refuse(handler, 400, "AuthorizationQueryParametersError", wrong)
            return self._refuse(handler, 301, "PermanentRedirect", "Elsewhere", {"x-amz-bucket-region": region})
        elif asked["X-Amz-Signature"] != self._signature(handler, asked, region):
            return self._refuse(handler, 403, "SignatureDoesNotMatch", "The signature that we calculated is another.")
        if bucket in self.paid and handler.headers.get("x-amz-request-payer") != "requester":
            return self._refuse(handler, 403, "AccessDenied", "Access Denied")
        if "list-type" in asked:
            self.add(handler.path, self._listed(bucket, asked), "application/xml")
        return super().answer(handler)

    def _listed(self, bucket: str, asked: dict[str, str]) -> bytes:
        inside = {path.removeprefix(f"/{bucket}/"): len(one.body) for path, one in self._resources.items()}
        keys = sorted(key for key in inside if key.startswith(asked.get("prefix", "")) and key[:1] != "/")
        keys = [key for key in keys if key > asked.get("continuation-token", "")]
        shown = "".join(
            f"<Contents><Key>{quote_plus(key, safe='/')}</Key><Size>{inside[key]}</Size></Contents>"
            for key in keys[: self.page]
        )
        after = keys[self.page - 1] if len(keys) > self.page else ""
        more = f"<NextContinuationToken>{escape(after)}</NextContinuationToken>" * bool(after)
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><EncodingType>url</EncodingType>'
            f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{shown}</ListBucketResult>"
        ).encode()

    def _signature(self, handler: _Handler, asked: dict[str, str], region: str) -> str:
        signed_at = datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if abs(time.time() - signed_at) > int(asked["X-Amz-Expires"]):
            return "expired"
        auth = S3SigV4QueryAuth(Credentials(KEY, SECRET), "s3", region)
        target = handler.path.replace(f"&X-Amz-Signature={asked['X-Amz-Signature']}", "")
        url = f"http://{handler.headers['Host']}{target}"
        signed = {name: handler.headers[name] for name in asked["X-Amz-SignedHeaders"].split(";")}
        request = AWSRequest("GET", url, headers=signed)
        request.context["timestamp"] = asked["X-Amz-Date"]
        text = auth.string_to_sign(request, auth.canonical_request(request))
        return str(auth.signature(text, request))

    def _refuse(
        self, handler: _Handler, code: int, word: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        body = REFUSAL.format(code=word, message=message, target=handler.path).encode()
        handler.answer(code, body, "application/xml", headers)
