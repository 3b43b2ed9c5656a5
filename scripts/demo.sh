#!/bin/sh
# What `make demo` runs: REDEEM under `both_0.7`, then its floor and ceiling rows, then one table of all of them.
# Finished runs are skipped, so a second call only prints.  Change the lists here to change the demo.
set -eu
harness=${HARNESS:-harness}
out=${OUT:-demo-report}
protocol=both_0.7

"$harness" run --no-table method=redeem "protocol=$protocol"
"$harness" run --no-table method=majority,knn_vote,zero_fill,complete "protocol=$protocol"
"$harness" run --no-table method=unimodal method.modality=image,text "protocol=$protocol"
"$harness" report --out "$out" dataset=openmoji "protocol=$protocol"
cat <<END

HTML report   $out/report.html
MLflow        $harness ui
More          . $(dirname "$harness")/activate   puts the command \`harness\` on your PATH; then: harness list methods
END
