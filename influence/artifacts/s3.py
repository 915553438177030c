"""S3's filesystem, with its errors in words and with writes that depend on what is there.

s3fs turns what S3 answers into errors of the operating system; what happens before there is an answer (no credentials,
no way to the endpoint) comes as it is. Both become `StoreError` here, in the one function that every request passes
through. Only "there is none" and "there is one" stay what they are: the store asks about them.
"""

from typing import Any

from aiohttp import ClientError as ConnectionLost
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from influence.errors import StoreError

TAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
"""What S3 answers where an object was to be written on a condition that doesn't hold."""
CREDENTIALS = (
    "Credentials and endpoint are taken from the environment or ~/.aws, as every S3 client takes them: "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, AWS_ENDPOINT_URL for a store that isn't Amazon's."
)


class S3(S3FileSystem):
    """s3fs, whose errors are `StoreError`."""

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *akwarglist, **kwargs)
        except (OSError, BotoCoreError, ConnectionLost, ValueError) as error:
            raise _explained(error, method, kwargs) from error

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        try:
            return await super()._cat_file(path, *args, **kwargs)
        except (BotoCoreError, ConnectionLost) as error:
            # The connection was lost in the middle of an answer, again and again.
            raise StoreError(f"s3://{path} can't be read: {error}. Run the same command again.") from error

    def replace_unchanged(self, path: str, content: bytes, tag: str) -> None:
        """Replace an object if it still is the one of this ETag.

        Raises:
            FileExistsError: It is another one now.
            FileNotFoundError: It is gone.
        """
        bucket, key, _ = self.split_path(path)
        self.call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfMatch=tag)

    def abandon_uploads(self, folder: str) -> int:
        """Drop the uploads below a folder that were begun and not completed, and return how many."""
        bucket, prefix, _ = self.split_path(folder)
        dropped, after = 0, {}
        while True:
            found: Any = self.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/", **after)
            for upload in found.get("Uploads", ()):
                self.abort_mpu(bucket, upload["Key"], upload["UploadId"])
                dropped += 1
            if not found.get("IsTruncated"):
                return dropped
            after = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}


def _explained(error: Exception, method: str, kwargs: dict[str, Any]) -> Exception:
    """Return what a request's error means for a run."""
    answer = getattr(error.__cause__, "response", None) or {}
    code = str(answer.get("Error", {}).get("Code", ""))
    bucket, key = kwargs.get("Bucket", ""), kwargs.get("Key") or kwargs.get("Prefix", "")
    place = f"s3://{bucket}/{key}"
    if code == "NoSuchBucket":
        return StoreError(f"There is no bucket {bucket}. Make it, or name another. {CREDENTIALS}")
    if {"IfNoneMatch", "IfMatch"} & kwargs.keys() and (code in TAKEN or isinstance(error, FileExistsError)):
        return FileExistsError(17, "There is another object", place)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(2, "No such object", place)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StoreError(f"{place}: no credentials for it were found ({error}). {CREDENTIALS}")
    if isinstance(error, PermissionError):
        return StoreError(f"{place}: {method} was refused ({code or '403'}: {error}). {CREDENTIALS}")
    return StoreError(f"{place}: {method} failed ({error}). {CREDENTIALS} Then run the same command again.")
