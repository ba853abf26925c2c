"""Tests of every example sequence in Mixpanel's identity documents, over HTTP.

A* are UUIDs, B1 is an anonymous id of the browser SDK 2.45, N1 an id that Mixpanel does not join, U* are user ids.
"docs" means Mixpanel's pages, "diagram" its decision diagrams, "observed" what others have seen a real project do.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
A3 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0003"
B1 = "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081"
N1 = "visitor-1"
U1, U2, U9 = "user-1", "user-2", "user-9"
D1, D2 = "device-1", "device-2"


def anonymous(number: int) -> str:
    return f"0b1fba6c-16d3-4e3f-9a4e-{number:012x}"


def wire(id_merge: IdMerge, **options: Any) -> Wire:
    return Wire(Emulator(id_merge, **options))


def people(mixpanel: Wire) -> set[frozenset[str]]:
    return {frozenset(cluster) for cluster in mixpanel.emulator.clusters()}


def persons(*clusters: set[str]) -> set[frozenset[str]]:
    return {frozenset(cluster) for cluster in clusters}


class TestOriginal:
    @pytest.fixture
    def mixpanel(self) -> Wire:
        return wire(IdMerge.ORIGINAL)

    def test_01_sign_up_includes_earlier_events(self, mixpanel: Wire) -> None:
        mixpanel.track(A1)
        assert mixpanel.counted() == [A1]
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1})
        assert mixpanel.counted() == [U1]
        (event,) = mixpanel.emulator.events("Viewed")
        assert event["properties"]["$distinct_id_before_identity"] == A1

    def test_02_user_returns_on_new_device(self, mixpanel: Wire) -> None:
        mixpanel.track(A1)
        mixpanel.identify(U1, A1)
        mixpanel.track(A2)
        mixpanel.identify(U1, A2)
        assert people(mixpanel) == persons({U1, A1, A2})
        assert mixpanel.counted() == [U1, U1]

    def test_03_log_out_without_reset_counts_for_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.track(A1)
        mixpanel.track(U1)
        assert mixpanel.counted() == [U1, U1]

    def test_04_reset_separates_next_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.track(A2)
        mixpanel.identify(U2, A2)
        assert people(mixpanel) == persons({U1, A1}, {U2, A2})

    def test_05_anonymous_id_belongs_to_first_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        refused = mixpanel.identify(U2, A1)
        assert refused["outcome"] == "failed"
        assert refused["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1}, {U2})

    @pytest.mark.parametrize(
        "anon_id",
        [N1, A1.replace("-", ""), A1[:-4] + "000g", A1 + " ", A1 + "-1", f"$device:$device:{A1}", "a-b-c-d-", "phone"],
    )
    def test_06_anonymous_id_in_other_format_is_refused(self, mixpanel: Wire, anon_id: str) -> None:
        mixpanel.track(anon_id)
        assert mixpanel.identify(U1, anon_id)["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
        assert people(mixpanel) == persons({U1}, {anon_id})
        (event,) = mixpanel.emulator.events("$identify")
        assert event["properties"]["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
        assert event["properties"]["$failure_description"]

    @pytest.mark.parametrize("anon_id", [A1, A1.upper(), A1[:14] + "1" + A1[15:], B1, B1.upper(), "a-b-c-0-1"])
    @pytest.mark.parametrize("prefix", ["", "$device:"])
    def test_06_forms_that_mixpanel_joined_are_accepted(self, mixpanel: Wire, prefix: str, anon_id: str) -> None:
        mixpanel.track(prefix + anon_id)
        assert mixpanel.identify(U1, prefix + anon_id)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, prefix + anon_id})
        assert mixpanel.counted() == [U1]

    def test_07_identify_with_equal_ids_is_refused(self, mixpanel: Wire) -> None:
        assert mixpanel.identify(A1, A1)["$failure_reason"] == "errSameIDs"
        assert people(mixpanel) == persons({A1})

    def test_08_chained_aliases_then_identify(self, mixpanel: Wire) -> None:
        mixpanel.alias(A1, A2)
        mixpanel.alias(A2, A3)
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1, A2, A3})

    def test_09_chained_merges_then_identify(self, mixpanel: Wire) -> None:
        mixpanel.merge(A1, A2)
        mixpanel.merge(A2, A3)
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1, A2, A3})

    def test_10_two_aliases_of_one_user(self, mixpanel: Wire) -> None:
        mixpanel.alias(U1, A1)
        mixpanel.alias(U1, A2)
        assert people(mixpanel) == persons({U1, A1, A2})

    def test_11_alias_of_two_users_is_refused(self, mixpanel: Wire) -> None:
        mixpanel.track(U2)
        mixpanel.alias(U1, "x")
        assert mixpanel.alias(U2, "x")["$failure_reason"] == "errAliasAlreadyExists"
        assert people(mixpanel) == persons({U1, "x"}, {U2})

    def test_12_device_and_user_properties_link_nothing(self, mixpanel: Wire) -> None:
        mixpanel.track(A1)
        mixpanel.track(U1, **{"$device_id": A1, "$user_id": U1})
        assert people(mixpanel) == persons({A1}, {U1})
        assert mixpanel.emulator.identity_log() == []

    def test_13_two_identified_users_merged(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.identify(U2, A2)
        assert mixpanel.merge(U1, U2)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, U2, A1, A2})

    def test_14_two_anonymous_ids_merged(self, mixpanel: Wire) -> None:
        mixpanel.merge(A1, A2)
        assert people(mixpanel) == persons({A1, A2})

    def test_15_alias_joins_two_user_ids(self, mixpanel: Wire) -> None:
        mixpanel.alias(U1, U9)
        assert people(mixpanel) == persons({U1, U9})

    @pytest.mark.parametrize("limit", [499, 500, 501])
    def test_16_ids_beyond_limit_are_refused(self, limit: int) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=limit)
        verbs = [
            {"event": "$identify", "properties": {"token": TOKEN, "$identified_id": U1, "$anon_id": anonymous(number)}}
            for number in range(510)
        ]
        assert mixpanel.post("/import?strict=1", verbs).status_code == 200
        assert len(mixpanel.emulator.cluster(U1)) == limit
        assert len(mixpanel.emulator.clusters()) == 1 + 511 - limit

    def test_17_full_cluster_refuses_new_id(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=3)
        mixpanel.identify(U1, A1)
        mixpanel.identify(U1, A2)
        assert mixpanel.identify(U1, A3)["$failure_reason"] == "errManyIDs"
        assert mixpanel.alias(U1, "x")["$failure_reason"] == "errManyIDs"
        assert people(mixpanel) == persons({U1, A1, A2}, {A3}, {"x"})
        assert mixpanel.alias("other", "x")["outcome"] == "merged"

    def test_18_clusters_too_large_to_merge_are_refused(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=3)
        mixpanel.identify(U1, A1)
        mixpanel.identify(U2, A2)
        assert mixpanel.merge(U1, U2)["$failure_reason"] == "errManyIDs"
        assert people(mixpanel) == persons({U1, A1}, {U2, A2})

    def test_16_default_limit_is_500(self, mixpanel: Wire) -> None:
        merges = [
            {"event": "$merge", "properties": {"token": TOKEN, "$distinct_ids": ["id-0", f"id-{number}"]}}
            for number in range(1, 502)
        ]
        assert mixpanel.post("/import?strict=1", merges).status_code == 200
        assert [entry["$failure_reason"] for entry in mixpanel.emulator.identity_log()] == [None] * 499 + [
            "errManyIDs"
        ] * 2
        assert len(mixpanel.emulator.cluster("id-0")) == 500

    def test_19_events_before_identify_are_included(self, mixpanel: Wire) -> None:
        mixpanel.track(A1, time=int(time.time()) - 4 * 86_400)
        mixpanel.identify(U1, A1)
        assert mixpanel.counted() == [U1]

    def test_20_repeated_identify_is_refused(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        assert mixpanel.identify(U1, A1)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1})

    def test_21_alias_of_identified_user_joins(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.alias(U1, A2)
        assert mixpanel.identify(U2, A2)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1, A2}, {U2})

    def test_merge_is_accepted_by_import_only(self, mixpanel: Wire) -> None:
        entry = mixpanel.verb("/track", "$merge", {"$distinct_ids": [U1, U2]})
        assert (entry["outcome"], entry["$failure_reason"]) == ("ignored", None)
        assert people(mixpanel) == persons({U1}, {U2})

    def test_merge_of_id_with_itself_changes_nothing(self, mixpanel: Wire) -> None:
        assert mixpanel.merge(U1, U1)["outcome"] == "unchanged"
        assert people(mixpanel) == persons({U1})

    def test_canonical_id_stays_while_cluster_grows(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.identify(U1, A2)
        mixpanel.alias(U1, "x")
        mixpanel.merge("x", U2)
        assert {mixpanel.emulator.resolve(each) for each in (U1, A1, A2, "x", U2)} == {U1}

    def test_canonical_id_can_be_any_member(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=lambda first, second: second)
        mixpanel.track(U1)
        mixpanel.identify(U1, A1)
        assert mixpanel.counted() == [A1]
        assert mixpanel.emulator.cluster(U1) == {U1, A1}

    def test_full_cluster_accepts_its_own_ids(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=2)
        mixpanel.alias(U1, A1)
        assert mixpanel.merge(A1, U1)["outcome"] == "unchanged"
        assert mixpanel.identify(U1, A1)["outcome"] == "unchanged"
        assert mixpanel.identify(U2, A1)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"

    def test_refused_calls_do_not_change_canonical_id(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=min)
        mixpanel.identify("m", A1)
        before = mixpanel.emulator.resolve("m")
        assert before == min("m", A1)
        mixpanel.identify("other", A1)
        mixpanel.alias("m", A1)
        mixpanel.alias("m", A1)
        mixpanel.merge("m", A1)
        assert {mixpanel.emulator.resolve(each) for each in ("m", A1)} == {before}

    def test_choosing_unrelated_canonical_id_raises(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=lambda first, second: "third")
        with pytest.raises(ValueError, match="choose_canonical"):
            mixpanel.identify(U1, A1)
        assert mixpanel.emulator.cluster(U1) == {U1}

    def test_refused_identify_marks_no_id_as_used(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, N1)
        mixpanel.alias(U1, A2)
        assert mixpanel.identify(U2, A2)["outcome"] == "merged"


class TestLegacy:
    def test_documented_sequence(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        mixpanel.track(D1)
        mixpanel.track(U1)
        assert mixpanel.alias(D1, U1)["outcome"] == "merged"
        mixpanel.track(U1)
        mixpanel.track(D2)
        refused = mixpanel.alias(D2, U1)
        mixpanel.track(U1)
        assert refused["$failure_reason"] == "errAliasAlreadyExists"
        assert mixpanel.counted() == [D1, U1, D1, D2, D1]
        assert mixpanel.emulator.resolve(U1) == D1
        assert mixpanel.emulator.cluster(D1) == {D1, U1}

    def test_chained_aliases_resolve_to_first_id(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        mixpanel.alias("a", "b")
        mixpanel.alias("b", "c")
        mixpanel.alias("root", "a")
        mixpanel.track("c")
        assert mixpanel.counted() == ["root"]
        assert mixpanel.emulator.cluster("b") == {"root", "a", "b", "c"}

    def test_alias_of_itself_is_refused(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        mixpanel.alias("a", "b")
        assert mixpanel.alias("b", "a")["$failure_reason"] == "errSameIDs"
        assert mixpanel.alias("c", "c")["$failure_reason"] == "errSameIDs"
        assert mixpanel.emulator.resolve("b") == "a"

    def test_other_identity_calls_have_no_effect(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        assert mixpanel.identify(U1, A1)["outcome"] == "ignored"
        assert mixpanel.merge(U1, U2)["outcome"] == "ignored"
        assert people(mixpanel) == persons({U1}, {A1}, {U2})


class TestSimplified:
    @pytest.fixture
    def mixpanel(self) -> Wire:
        return wire(IdMerge.SIMPLIFIED)

    def device(self, mixpanel: Wire, device_id: str, user_id: str | None = None, **properties: Any) -> None:
        ids = {"$device_id": device_id} if user_id is None else {"$device_id": device_id, "$user_id": user_id}
        mixpanel.track(None, **ids, **properties)

    def test_new_sign_up(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [f"$device:{D1}"] * 2
        self.device(mixpanel, D1, U1)
        assert mixpanel.counted() == [U1] * 3
        assert mixpanel.emulator.cluster(U1) == {U1, f"$device:{D1}"}
        self.device(mixpanel, D1, U1)
        stored = [event["properties"]["distinct_id"] for event in mixpanel.emulator.raw_events()][:3]
        assert stored == [f"$device:{D1}", f"$device:{D1}", U1]
        (entry,) = mixpanel.emulator.identity_log()
        assert entry["outcome"] == "merged"

    def test_user_returns_on_second_device(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2, U1)
        assert mixpanel.counted() == [U1] * 4
        assert people(mixpanel) == persons({U1, f"$device:{D1}", f"$device:{D2}"})

    def test_reset_separates_two_users_of_device(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2, U2)
        assert mixpanel.counted() == [U1, U1, U2, U2, U2]
        assert people(mixpanel) == persons({U1, f"$device:{D1}"}, {U2, f"$device:{D2}"})

    @pytest.mark.parametrize(
        ("sent", "added"), [("charlie", {"$user_id": "charlie"}), ("$device:111", {"$device_id": "111"})]
    )
    def test_distinct_id_alone_becomes_user_or_device(self, mixpanel: Wire, sent: str, added: dict[str, str]) -> None:
        mixpanel.track(sent)
        (event,) = mixpanel.emulator.raw_events()
        assert added.items() <= event["properties"].items()
        assert event["properties"]["distinct_id"] == sent

    def test_device_stays_with_first_user(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D1, U2)
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U2, U1]
        assert [entry["outcome"] for entry in mixpanel.emulator.identity_log()] == ["merged", "ignored"]

    def test_former_device_id_as_user_id_is_new_user(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "+6512345678", "charlie")
        mixpanel.track(None, **{"$user_id": "+6512345678"})
        assert mixpanel.emulator.cluster("charlie") == {"charlie", "$device:+6512345678"}
        assert mixpanel.counted() == ["charlie", "+6512345678"]

    def test_log_in_after_log_out_keeps_user(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "anonymous111", "charlie")
        self.device(mixpanel, "anonymous222")
        self.device(mixpanel, "anonymous222", "charlie")
        assert people(mixpanel) == persons({"charlie", "$device:anonymous111", "$device:anonymous222"})

    def test_one_event_with_both_ids_links_device(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        mixpanel.track(f"$device:{D1}")
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U1, U1]

    def test_imported_old_event_links_device(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        past = imported(distinct_id=None, time=int(time.time()) - 30 * 86_400, **{"$device_id": D1, "$user_id": U1})
        assert mixpanel.post("/import?strict=1", [past]).status_code == 200
        assert mixpanel.counted() == [U1]

    def test_two_users_are_never_joined(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D2, U2)
        self.device(mixpanel, D1, U2)
        self.device(mixpanel, D2, U1)
        assert people(mixpanel) == persons({U1, f"$device:{D1}"}, {U2, f"$device:{D2}"})

    def test_other_user_on_new_device_is_separate(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "111", "charlie")
        self.device(mixpanel, "222")
        self.device(mixpanel, "222", "taylor")
        assert people(mixpanel) == persons({"charlie", "$device:111"}, {"taylor", "$device:222"})

    def test_events_with_user_id_only_count_for_user(self, mixpanel: Wire) -> None:
        mixpanel.track(None, **{"$user_id": U1})
        assert mixpanel.counted() == [U1]

    def test_unidentified_devices_stay_separate(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        self.device(mixpanel, D2)
        assert people(mixpanel) == persons({f"$device:{D1}"}, {f"$device:{D2}"})

    def test_id_properties_override_distinct_id(self, mixpanel: Wire) -> None:
        mixpanel.track("something", **{"$device_id": D1, "$user_id": U1})
        (event,) = mixpanel.emulator.events()
        assert event["properties"]["distinct_id"] == U1
        assert event["properties"]["$distinct_id_before_identity"] == "something"
        assert people(mixpanel) == persons({U1, f"$device:{D1}"})

    def test_prefix_of_device_id_is_removed(self, mixpanel: Wire) -> None:
        self.device(mixpanel, f"$device:{D1}", U1)
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U1]

    def test_linking_event_may_predate_anonymous_events(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, time=int(time.time()))
        self.device(mixpanel, D1, U1, time=int(time.time()) - 4 * 86_400)
        assert mixpanel.counted() == [U1, U1]

    def test_prefixed_user_id_is_device(self, mixpanel: Wire) -> None:
        mixpanel.track(None, **{"$user_id": "$device:x"})
        assert mixpanel.counted() == ["$device:x"]
        mixpanel.track("$device:y", **{"$user_id": U1})
        assert mixpanel.emulator.cluster(U1) == {U1}

    @pytest.mark.parametrize("useless", ["", "null", "UNDEFINED", "0", False, ["a"]])
    def test_forbidden_and_malformed_ids_do_not_link(self, mixpanel: Wire, useless: Any) -> None:
        mixpanel.track(None, **{"$device_id": useless, "$user_id": U1})
        mixpanel.track("known", **{"$device_id": D1, "$user_id": useless})
        assert mixpanel.counted() == [U1, f"$device:{D1}"]
        assert mixpanel.emulator.identity_log() == []

    def test_device_profile_is_not_merged(self, mixpanel: Wire) -> None:
        mixpanel.engage(f"$device:{D1}", set={"seen": "anonymously"})
        mixpanel.engage(U1, set={"plan": "pro"})
        self.device(mixpanel, D1, U1)
        profile = mixpanel.emulator.profile(f"$device:{D1}")
        assert profile is not None
        assert "seen" not in profile
        assert profile["plan"] == "pro"
        assert set(mixpanel.emulator.profiles()) == {U1}

    def test_identity_calls_on_track_are_stored_without_effect(self, mixpanel: Wire) -> None:
        assert mixpanel.alias(U1, "x")["outcome"] == "ignored"
        assert mixpanel.identify(U1, A1)["outcome"] == "ignored"
        (event,) = mixpanel.emulator.events("$identify")
        assert event["properties"]["$identity_failure_reason"]
        assert "$failure_reason" not in event["properties"]
        assert mixpanel.emulator.cluster(U1) == {U1}

    def test_strict_import_refuses_identity_calls_and_keeps_other_records(self, mixpanel: Wire) -> None:
        words = "identity events are not allowed when project is using simplified identity management"
        merge = {"event": "$merge", "properties": {"token": TOKEN, "$distinct_ids": [U1, U2]}}
        plain = {"event": "e", "properties": {"time": int(time.time()), "distinct_id": U1, "$insert_id": "1"}}
        response = mixpanel.post("/import?strict=1", [merge, plain])
        assert response.status_code == 400
        assert response.json()["failed_records"] == [words]
        assert response.json()["num_records_imported"] == 1
        assert [event["event"] for event in mixpanel.emulator.events()] == ["e"]
        (entry,) = mixpanel.emulator.identity_log()
        assert (entry["event"], entry["outcome"]) == ("$merge", "failed")
