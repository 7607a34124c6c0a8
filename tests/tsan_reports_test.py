#!/usr/bin/env python3
"""tsan_reports.py: what it leaves out, and what it must not."""
import unittest

import tsan_reports

GRPC = "    #0 grpc::internal::CallOpSet<A<B>, C>::FillOps(grpc::internal::Call*) <null> (prog+0x1)"
GRPC_FILE = "    #0 Finish /usr/include/grpcpp/support/server_callback.h:102 (prog+0x1)"
STANDARD = "    #0 std::function<void (bool)>::operator()(bool) const /usr/include/c++/12/bits/std_function.h:591 (prog+0x1)"
MESSAGE = "    #1 quern::worker::v1::Lease::~Lease() proto/gen/quern/worker/v1/worker_service.pb.cc:542 (prog+0x2)"
FREE = "    #0 operator delete(void*, unsigned long) <null> (libtsan.so+0x2)"
OURS = "    #2 quern::Queue<int>::Push(int) ../core/queue.cc:12 (prog+0x3)"
LAMBDA = "    #2 operator() ../services/jobs/board.cc:9 (prog+0x3)"


def report(first, second, kind="data race"):
    stacks = "\n".join(first), "\n".join(second)
    return (f"==================\nWARNING: ThreadSanitizer: {kind} (pid=1)\n"
            f"  Write of size 8 at 0x7b by thread T2 (mutexes: write M1):\n{stacks[0]}\n\n"
            f"  Previous atomic read of size 8 at 0x7b by main thread:\n{stacks[1]}\n\n"
            f"  Location is heap block of size 8 allocated by thread T1:\n{OURS}\n\n"
            f"SUMMARY: ThreadSanitizer: {kind}\n==================\n")


class TsanReportsTest(unittest.TestCase):
    def count(self, *reports):
        return len(list(tsan_reports.ours("[ RUN ] A\n" + "".join(reports))))

    def test_an_access_of_grpc_is_left_out(self):
        for own in ([GRPC], [GRPC_FILE], [STANDARD, GRPC], [FREE, MESSAGE, GRPC]):
            self.assertEqual(self.count(report(own, [OURS])), 0, own)
            self.assertEqual(self.count(report([OURS], own)), 0, own)

    def test_two_accesses_of_ours_are_not(self):
        for own in ([OURS], [LAMBDA], [STANDARD, OURS, GRPC], [STANDARD, MESSAGE, LAMBDA, GRPC]):
            self.assertEqual(self.count(report(own, [OURS])), 1, own)

    def test_nor_other_kinds_nor_stacks_that_are_lost(self):
        self.assertEqual(self.count(report([GRPC], [GRPC], "lock-order-inversion")), 1)
        self.assertEqual(self.count(report(["    [failed to restore the stack]"], [OURS])), 1)
        self.assertEqual(self.count(report([GRPC], [GRPC]), report([OURS], [OURS])), 1)
        self.assertEqual(self.count(), 0)

    def test_half_a_report_cannot_be_judged(self):
        whole = report([OURS], [OURS])
        self.assertEqual(self.count(whole[:whole.index("  Previous")]), 0)
        self.assertEqual(self.count(whole, whole[:whole.index("  Previous")]), 1)


if __name__ == "__main__":
    unittest.main()
