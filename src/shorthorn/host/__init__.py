"""The kernel and its tools: files, loop devices, mounts, freezing, file systems, QEMU tools."""
