"""At which addresses processes listen, as the system knows it."""

import psutil


def listening(*pids: int) -> set[str]:
    """Return the addresses at which this process and its children listen, and those named by number."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True), *map(psutil.Process, pids)]
    sockets = [each for process in processes for each in process.net_connections("inet")]
    return {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
