#!/bin/sh
# What `make demo` runs: REDEEM beside its floor and ceiling rows under `both_0.7`, then one table of all of them.
# Finished runs are skipped, so a second call only prints.  Change the lists here to change the demo.
set -eu
harness=${HARNESS:-harness}
out=${OUT:-demo-report}
protocol=both_0.7
seeds=0,1,2,3,4
methods=majority,knn_vote,zero_fill,mean_fill,modality_dropout,late_fusion,redeem,complete

"$harness" run --no-table "method=$methods" "protocol=$protocol" "train_seed=$seeds"
"$harness" run --no-table method=unimodal method.modality=image,text "protocol=$protocol" "train_seed=$seeds"
"$harness" report --out "$out" dataset=openmoji "protocol=$protocol"
cat <<END

HTML report   $out/report.html
MLflow        $harness ui
More          . $(dirname "$harness")/activate   puts the command \`harness\` on your PATH; then: harness list methods
END
