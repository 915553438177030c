"""At which addresses processes listen, as the system knows it."""

import psutil


def listening(*pids: int) -> set[tuple[str, int]]:
    """Return the addresses and ports at which this process and its children listen, and those named by number."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True), *map(psutil.Process, pids)]
    sockets = [each for process in processes for each in process.net_connections("inet")]
    return {(each.laddr.ip, each.laddr.port) for each in sockets if each.status == psutil.CONN_LISTEN}


def hosts_since(before: set[tuple[str, int]], *pids: int) -> set[str]:
    """Return the addresses of what listens now and didn't before: other tests of this process have servers, too."""
    return {ip for ip, _ in listening(*pids) - before}
