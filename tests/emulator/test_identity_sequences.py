"""Every worked sequence of Mixpanel's identity documents, by name, through HTTP.

A* are UUIDs of version 4, N1 is another form of anonymous id, U* are user ids. "docs" means Mixpanel's pages, "diagram"
its decision diagrams, "observed" what others have seen a real project do.
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
N1 = "13bbf7943e584-0885c2531-5c793977-3e8000-13bbf7943e64cf"
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

    def test_01_sign_up_carries_earlier_events_along(self, mixpanel: Wire) -> None:
        mixpanel.track(A1)
        assert mixpanel.counted() == [A1]
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1})
        assert mixpanel.counted() == [U1]
        (event,) = mixpanel.emulator.events("Viewed")
        assert event["properties"]["$distinct_id_before_identity"] == A1

    def test_02_returning_on_a_new_device(self, mixpanel: Wire) -> None:
        mixpanel.track(A1)
        mixpanel.identify(U1, A1)
        mixpanel.track(A2)
        mixpanel.identify(U1, A2)
        assert people(mixpanel) == persons({U1, A1, A2})
        assert mixpanel.counted() == [U1, U1]

    def test_03_logged_out_without_reset_still_counts_for_the_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.track(A1)
        mixpanel.track(U1)
        assert mixpanel.counted() == [U1, U1]

    def test_04_reset_before_another_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.track(A2)
        mixpanel.identify(U2, A2)
        assert people(mixpanel) == persons({U1, A1}, {U2, A2})

    def test_05_an_anonymous_id_belongs_to_its_first_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        refused = mixpanel.identify(U2, A1)
        assert refused["outcome"] == "failed"
        assert refused["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1}, {U2})

    @pytest.mark.parametrize("anon_id", [N1, A1.replace("-", ""), A1[:14] + "1" + A1[15:], A1 + " ", "phone"])
    def test_06_an_anonymous_id_in_another_form(self, mixpanel: Wire, anon_id: str) -> None:
        mixpanel.track(anon_id)
        assert mixpanel.identify(U1, anon_id)["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
        assert people(mixpanel) == persons({U1}, {anon_id})
        (event,) = mixpanel.emulator.events("$identify")
        assert event["properties"]["$failure_reason"] == "errAnonDistinctIdNonGUIDForm"
        assert event["properties"]["$failure_description"]

    def test_06_letter_case_of_a_uuid_does_not_matter(self, mixpanel: Wire) -> None:
        assert mixpanel.identify(U1, A1.upper())["outcome"] == "merged"

    def test_07_an_id_with_itself(self, mixpanel: Wire) -> None:
        assert mixpanel.identify(A1, A1)["$failure_reason"] == "errSameIDs"
        assert people(mixpanel) == persons({A1})

    def test_08_aliases_in_a_daisy_chain_then_identify(self, mixpanel: Wire) -> None:
        mixpanel.alias(A1, A2)
        mixpanel.alias(A2, A3)
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1, A2, A3})

    def test_09_merges_in_a_chain_then_identify(self, mixpanel: Wire) -> None:
        mixpanel.merge(A1, A2)
        mixpanel.merge(A2, A3)
        assert mixpanel.identify(U1, A1)["outcome"] == "merged"
        assert people(mixpanel) == persons({U1, A1, A2, A3})

    def test_10_two_aliases_of_one_user(self, mixpanel: Wire) -> None:
        mixpanel.alias(U1, A1)
        mixpanel.alias(U1, A2)
        assert people(mixpanel) == persons({U1, A1, A2})

    def test_11_one_alias_of_two_users(self, mixpanel: Wire) -> None:
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

    def test_15_an_alias_between_two_user_ids(self, mixpanel: Wire) -> None:
        mixpanel.alias(U1, U9)
        assert people(mixpanel) == persons({U1, U9})

    @pytest.mark.parametrize("limit", [499, 500, 501])
    def test_16_the_510th_anonymous_id(self, limit: int) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=limit)
        verbs = [
            {"event": "$identify", "properties": {"token": TOKEN, "$identified_id": U1, "$anon_id": anonymous(number)}}
            for number in range(510)
        ]
        assert mixpanel.post("/import?strict=1", verbs).status_code == 200
        assert len(mixpanel.emulator.cluster(U1)) == limit
        assert len(mixpanel.emulator.clusters()) == 1 + 511 - limit

    def test_17_a_full_cluster_takes_no_more(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=3)
        mixpanel.identify(U1, A1)
        mixpanel.identify(U1, A2)
        assert mixpanel.identify(U1, A3)["$failure_reason"] == "errManyIDs"
        assert mixpanel.alias(U1, "x")["$failure_reason"] == "errManyIDs"
        assert people(mixpanel) == persons({U1, A1, A2}, {A3}, {"x"})
        assert mixpanel.alias("other", "x")["outcome"] == "merged"

    def test_18_two_clusters_too_large_together(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=3)
        mixpanel.identify(U1, A1)
        mixpanel.identify(U2, A2)
        assert mixpanel.merge(U1, U2)["$failure_reason"] == "errManyIDs"
        assert people(mixpanel) == persons({U1, A1}, {U2, A2})

    def test_16_the_limit_is_500_unless_told_otherwise(self, mixpanel: Wire) -> None:
        merges = [
            {"event": "$merge", "properties": {"token": TOKEN, "$distinct_ids": ["id-0", f"id-{number}"]}}
            for number in range(1, 502)
        ]
        assert mixpanel.post("/import?strict=1", merges).status_code == 200
        assert [entry["$failure_reason"] for entry in mixpanel.emulator.identity_log()] == [None] * 499 + [
            "errManyIDs"
        ] * 2
        assert len(mixpanel.emulator.cluster("id-0")) == 500

    def test_19_events_from_days_before_the_identify(self, mixpanel: Wire) -> None:
        mixpanel.track(A1, time=int(time.time()) - 4 * 86_400)
        mixpanel.identify(U1, A1)
        assert mixpanel.counted() == [U1]

    def test_20_the_same_identify_again(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        assert mixpanel.identify(U1, A1)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1})

    def test_21_an_alias_of_an_identified_user(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.alias(U1, A2)
        assert mixpanel.identify(U2, A2)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"
        assert people(mixpanel) == persons({U1, A1, A2}, {U2})

    def test_merge_is_taken_by_import_only(self, mixpanel: Wire) -> None:
        entry = mixpanel.verb("/track", "$merge", {"$distinct_ids": [U1, U2]})
        assert (entry["outcome"], entry["$failure_reason"]) == ("ignored", None)
        assert people(mixpanel) == persons({U1}, {U2})

    def test_merging_an_id_with_itself_changes_nothing(self, mixpanel: Wire) -> None:
        assert mixpanel.merge(U1, U1)["outcome"] == "unchanged"
        assert people(mixpanel) == persons({U1})

    def test_the_canonical_id_stays_while_its_cluster_grows(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, A1)
        mixpanel.identify(U1, A2)
        mixpanel.alias(U1, "x")
        mixpanel.merge("x", U2)
        assert {mixpanel.emulator.resolve(each) for each in (U1, A1, A2, "x", U2)} == {U1}

    def test_the_canonical_id_can_be_any_member(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=lambda first, second: second)
        mixpanel.track(U1)
        mixpanel.identify(U1, A1)
        assert mixpanel.counted() == [A1]
        assert mixpanel.emulator.cluster(U1) == {U1, A1}

    def test_a_full_person_takes_what_it_has_already(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, cluster_limit=2)
        mixpanel.alias(U1, A1)
        assert mixpanel.merge(A1, U1)["outcome"] == "unchanged"
        assert mixpanel.identify(U1, A1)["outcome"] == "unchanged"
        assert mixpanel.identify(U2, A1)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"

    def test_the_canonical_id_is_stable_whatever_is_refused(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=min)
        mixpanel.identify("m", A1)
        before = mixpanel.emulator.resolve("m")
        assert before == min("m", A1)
        mixpanel.identify("other", A1)
        mixpanel.alias("m", A1)
        mixpanel.alias("m", A1)
        mixpanel.merge("m", A1)
        assert {mixpanel.emulator.resolve(each) for each in ("m", A1)} == {before}

    def test_a_choice_of_another_id_is_a_mistake(self) -> None:
        mixpanel = wire(IdMerge.ORIGINAL, choose_canonical=lambda first, second: "third")
        with pytest.raises(ValueError, match="choose_canonical"):
            mixpanel.identify(U1, A1)
        assert mixpanel.emulator.cluster(U1) == {U1}

    def test_a_refused_identify_uses_nothing_up(self, mixpanel: Wire) -> None:
        mixpanel.identify(U1, N1)
        mixpanel.alias(U1, A2)
        assert mixpanel.identify(U2, A2)["outcome"] == "merged"


class TestLegacy:
    def test_the_worked_sequence(self) -> None:
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

    def test_aliases_in_a_chain(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        mixpanel.alias("a", "b")
        mixpanel.alias("b", "c")
        mixpanel.alias("root", "a")
        mixpanel.track("c")
        assert mixpanel.counted() == ["root"]
        assert mixpanel.emulator.cluster("b") == {"root", "a", "b", "c"}

    def test_an_alias_cannot_lead_back_to_itself(self) -> None:
        mixpanel = wire(IdMerge.LEGACY)
        mixpanel.alias("a", "b")
        assert mixpanel.alias("b", "a")["$failure_reason"] == "errSameIDs"
        assert mixpanel.alias("c", "c")["$failure_reason"] == "errSameIDs"
        assert mixpanel.emulator.resolve("b") == "a"

    def test_the_other_verbs_do_nothing(self) -> None:
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

    def test_returning_on_a_second_device(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2)
        self.device(mixpanel, D2, U1)
        assert mixpanel.counted() == [U1] * 4
        assert people(mixpanel) == persons({U1, f"$device:{D1}", f"$device:{D2}"})

    def test_two_users_on_one_device_with_a_reset_between(self, mixpanel: Wire) -> None:
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
    def test_a_distinct_id_alone_becomes_a_user_or_a_device(
        self, mixpanel: Wire, sent: str, added: dict[str, str]
    ) -> None:
        mixpanel.track(sent)
        (event,) = mixpanel.emulator.raw_events()
        assert added.items() <= event["properties"].items()
        assert event["properties"]["distinct_id"] == sent

    def test_a_device_stays_with_its_first_user(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D1, U2)
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U2, U1]
        assert [entry["outcome"] for entry in mixpanel.emulator.identity_log()] == ["merged", "ignored"]

    def test_a_former_device_id_as_a_user_id_is_a_new_user(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "+6512345678", "charlie")
        mixpanel.track(None, **{"$user_id": "+6512345678"})
        assert mixpanel.emulator.cluster("charlie") == {"charlie", "$device:+6512345678"}
        assert mixpanel.counted() == ["charlie", "+6512345678"]

    def test_logging_in_again_after_logging_out(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "anonymous111", "charlie")
        self.device(mixpanel, "anonymous222")
        self.device(mixpanel, "anonymous222", "charlie")
        assert people(mixpanel) == persons({"charlie", "$device:anonymous111", "$device:anonymous222"})

    def test_one_event_with_both_ids_is_enough_and_later_ones_follow(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        mixpanel.track(f"$device:{D1}")
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U1, U1]

    def test_a_merging_event_imported_from_a_month_before(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        past = imported(distinct_id=None, time=int(time.time()) - 30 * 86_400, **{"$device_id": D1, "$user_id": U1})
        assert mixpanel.post("/import?strict=1", [past]).status_code == 200
        assert mixpanel.counted() == [U1]

    def test_two_users_never_become_one(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, U1)
        self.device(mixpanel, D2, U2)
        self.device(mixpanel, D1, U2)
        self.device(mixpanel, D2, U1)
        assert people(mixpanel) == persons({U1, f"$device:{D1}"}, {U2, f"$device:{D2}"})

    def test_another_user_on_a_new_device_id(self, mixpanel: Wire) -> None:
        self.device(mixpanel, "111", "charlie")
        self.device(mixpanel, "222")
        self.device(mixpanel, "222", "taylor")
        assert people(mixpanel) == persons({"charlie", "$device:111"}, {"taylor", "$device:222"})

    def test_events_of_the_user_alone(self, mixpanel: Wire) -> None:
        mixpanel.track(None, **{"$user_id": U1})
        assert mixpanel.counted() == [U1]

    def test_devices_never_identified_stay_apart(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1)
        self.device(mixpanel, D2)
        assert people(mixpanel) == persons({f"$device:{D1}"}, {f"$device:{D2}"})

    def test_the_properties_override_the_distinct_id_sent(self, mixpanel: Wire) -> None:
        mixpanel.track("something", **{"$device_id": D1, "$user_id": U1})
        (event,) = mixpanel.emulator.events()
        assert event["properties"]["distinct_id"] == U1
        assert event["properties"]["$distinct_id_before_identity"] == "something"
        assert people(mixpanel) == persons({U1, f"$device:{D1}"})

    def test_a_prefix_in_the_device_id_is_taken_off(self, mixpanel: Wire) -> None:
        self.device(mixpanel, f"$device:{D1}", U1)
        self.device(mixpanel, D1)
        assert mixpanel.counted() == [U1, U1]

    def test_a_merging_event_dated_before_the_anonymous_ones(self, mixpanel: Wire) -> None:
        self.device(mixpanel, D1, time=int(time.time()))
        self.device(mixpanel, D1, U1, time=int(time.time()) - 4 * 86_400)
        assert mixpanel.counted() == [U1, U1]

    def test_a_prefixed_user_id_is_a_device(self, mixpanel: Wire) -> None:
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

    def test_the_profile_of_a_device_is_not_carried_over(self, mixpanel: Wire) -> None:
        mixpanel.engage(f"$device:{D1}", set={"seen": "anonymously"})
        mixpanel.engage(U1, set={"plan": "pro"})
        self.device(mixpanel, D1, U1)
        profile = mixpanel.emulator.profile(f"$device:{D1}")
        assert profile is not None
        assert "seen" not in profile
        assert profile["plan"] == "pro"
        assert set(mixpanel.emulator.profiles()) == {U1}

    def test_verbs_on_track_are_stored_without_effect(self, mixpanel: Wire) -> None:
        assert mixpanel.alias(U1, "x")["outcome"] == "ignored"
        assert mixpanel.identify(U1, A1)["outcome"] == "ignored"
        (event,) = mixpanel.emulator.events("$identify")
        assert event["properties"]["$identity_failure_reason"]
        assert "$failure_reason" not in event["properties"]
        assert mixpanel.emulator.cluster(U1) == {U1}

    def test_verbs_on_strict_import_are_refused_and_the_rest_kept(self, mixpanel: Wire) -> None:
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
