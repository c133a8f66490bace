"""Sends requests with the client of AWS' SDK for Python, like programs in guests, and prints the answers as JSON.

Called in a network namespace in which 169.254.169.254 is the service.
"""

import json

from botocore import utils

fetcher = utils.IMDSFetcher(timeout=5)
token = fetcher._fetch_metadata_token()


def read(path, token):
    return fetcher._get_request("latest/meta-data/" + path, None, token=token).text


def refused(token):
    try:
        read("instance-id", token)
    except fetcher._RETRIES_EXCEEDED_ERROR_CLS:
        return True
    return False


print(
    json.dumps(
        {
            "token": bool(token),
            "instance-id": read("instance-id", token),
            "without a token": read("instance-id", None),
            "local-ipv4": read("local-ipv4", token),
            "a wrong token is refused": refused("A" * len(token)),
            "region": utils.InstanceMetadataRegionFetcher(timeout=5).retrieve_region(),
            "credentials": utils.InstanceMetadataFetcher(timeout=5).retrieve_iam_role_credentials(),
        }
    )
)
